/**
 * Pixels beyond the scales that a model was trained for, resampled by Lanczos. It mirrors
 * `infgen_rt/nodes/resampled.py`, and gives what Pillow's filter for float32 gives.
 */

import type { Box, Size } from "../geometry/box.js";
import { emptyPlanes, sizeOf, type Values } from "../values.js";
import type { Decoded } from "./decoded.js";

/** Reach of Lanczos on either side, in pixels of the source, or of the result if that is smaller. */
const SUPPORT = 3;

/** A decoded picture at another size, as planes [1, 3, h, w], about 0 to 1. */
export class Resampled {
  constructor(
    readonly source: Decoded,
    readonly size: Size,
  ) {}

  /** The pixels of a box; see `Decoded.read`. */
  async read(box: Box, signal?: AbortSignal): Promise<Values> {
    const whole = this.source.grid.picture;
    const [left, width] = seen(box.x, box.width, this.size.width, whole.width);
    const [top, height] = seen(box.y, box.height, this.size.height, whole.height);
    const pixels = await this.source.read({ x: left, y: top, width, height }, signal);
    const across = whole.width / this.size.width;
    const down = whole.height / this.size.height;
    const x = box.x * across - left;
    const y = box.y * down - top;
    const wide = horizontally(pixels, taps(width, x, x + box.width * across, box.width));
    return vertically(wide, taps(height, y, y + box.height * down, box.height));
  }
}

/** The first pixel of the source that a range of the result depends on, and how many. */
function seen(start: number, length: number, side: number, count: number): readonly [number, number] {
  const step = count / side;
  const reach = SUPPORT * Math.max(1, step) + 1;
  const first = Math.max(0, Math.floor((start + 0.5) * step - reach));
  return [first, Math.min(count, Math.ceil((start + length - 0.5) * step + reach)) - first];
}

/** For a pixel of the result: the first pixel of the source, and the weights from there on. */
interface Tap {
  readonly first: number;
  readonly weights: Float64Array;
}

/** The taps of a side, from a range of the source (in float32, as Pillow has it) to so many pixels. */
function taps(count: number, start: number, stop: number, pixels: number): Tap[] {
  const begin = Math.fround(start);
  const scale = Math.fround(Math.fround(stop) - begin) / pixels;
  const wide = Math.max(1, scale);
  const support = SUPPORT * wide;
  return Array.from({ length: pixels }, (_, index) => {
    const centre = begin + (index + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support + 0.5));
    const last = Math.min(count, Math.trunc(centre + support + 0.5));
    const weights = Float64Array.from({ length: last - first }, (_, tap) =>
      lanczos((tap + first - centre + 0.5) / wide),
    );
    const sum = weights.reduce((whole, weight) => whole + weight, 0);
    return { first, weights: weights.map((weight) => (sum === 0 ? weight : weight / sum)) };
  });
}

function lanczos(x: number): number {
  return x >= -SUPPORT && x < SUPPORT ? sinc(x) * sinc(x / SUPPORT) : 0;
}

function sinc(x: number): number {
  return x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI);
}

function horizontally(values: Values, filter: readonly Tap[]): Values {
  const { width, height } = sizeOf(values);
  const result = emptyPlanes(3, { width: filter.length, height });
  for (let row = 0; row < 3 * height; row++) {
    filter.forEach(({ first, weights }, column) => {
      let sum = 0;
      for (let tap = 0; tap < weights.length; tap++) {
        sum += (values.data[row * width + first + tap] as number) * (weights[tap] as number);
      }
      result.data[row * filter.length + column] = sum;
    });
  }
  return result;
}

function vertically(values: Values, filter: readonly Tap[]): Values {
  const { width, height } = sizeOf(values);
  const result = emptyPlanes(3, { width, height: filter.length });
  for (let plane = 0; plane < 3; plane++) {
    filter.forEach(({ first, weights }, row) => {
      for (let column = 0; column < width; column++) {
        let sum = 0;
        for (let tap = 0; tap < weights.length; tap++) {
          sum += (values.data[(plane * height + first + tap) * width + column] as number) * (weights[tap] as number);
        }
        result.data[(plane * filter.length + row) * width + column] = sum;
      }
    });
  }
  return result;
}
