/** Arrays [1, channels, height, width] or of other shapes, which graphs take and return. */

import type { Box, Size } from "./geometry/box.js";

/** Float32 numbers with their shape. */
export interface Values {
  readonly data: Float32Array;
  readonly dims: readonly number[];
}

/** The numbers of channels [C, h, w], with the batch axis that graphs take. */
export function planes(data: Float32Array, size: Size): Values {
  return { data, dims: [1, data.length / (size.width * size.height), size.height, size.width] };
}

/** A vector. */
export function vector(numbers: Iterable<number>): Values {
  const data = Float32Array.from(numbers);
  return { data, dims: [data.length] };
}

/** The width and height of planes. */
export function sizeOf(values: Values): Size {
  return { width: values.dims[3] as number, height: values.dims[2] as number };
}

/** Zeros for so many channels of a box. */
export function emptyPlanes(channels: number, size: Size): Values {
  return planes(new Float32Array(channels * size.width * size.height), size);
}

/**
 * Copy a box from planes into others.
 *
 * @param from the source.
 * @param source the box in the source.
 * @param to the target.
 * @param at the place of the box's top-left corner in the target.
 */
export function copyBox(from: Values, source: Box, to: Values, at: { readonly x: number; readonly y: number }): void {
  const there = sizeOf(from);
  const here = sizeOf(to);
  const channels = from.dims[1] as number;
  for (let channel = 0; channel < channels; channel++) {
    for (let row = 0; row < source.height; row++) {
      const start = (channel * there.height + source.y + row) * there.width + source.x;
      const target = (channel * here.height + at.y + row) * here.width + at.x;
      to.data.set(from.data.subarray(start, start + source.width), target);
    }
  }
}

/** Cut a box out of planes. The result is the same object if the box is the whole. */
export function cut(values: Values, box: Box): Values {
  const size = sizeOf(values);
  if (box.width === size.width && box.height === size.height) return values;
  const result = emptyPlanes(values.dims[1] as number, box);
  copyBox(values, box, result, { x: 0, y: 0 });
  return result;
}
