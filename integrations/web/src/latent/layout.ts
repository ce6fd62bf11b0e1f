/** The shapes that latents may have, and their conversion to plain latents [C, h, w]. */

import { InfGenError } from "../errors.js";
import type { Size } from "../geometry/box.js";
import type { FloatArray } from "./array.js";
import type { LatentSpace } from "./spaces.js";

/**
 * Remove the batch and time axes of an array, and undo patchifying and packing.
 *
 * @param latentSize the width and height in pixels that were requested from the pipeline. Only for packed latents.
 * @returns the numbers [C, h, w] and the size in cells.
 * @throws {InfGenError} if the shape is not that of one latent of the space.
 */
export function plainLatent(
  array: FloatArray,
  space: LatentSpace,
  latentSize?: Size,
): { data: Float32Array; cells: Size } {
  const channels = space.channels;
  let shape = withoutFrame(array.shape, space);
  const isPacked = space.packed && shape.length === (shape[0] === 1 ? 3 : 2) && shape.at(-1) === 4 * channels;
  if (shape.length === 4 || (isPacked && shape.length === 3)) {
    const [batch = 1, ...rest] = shape;
    if (batch !== 1)
      throw new InfGenError("latent", `shape [${array.shape.join(", ")}] is a batch of ${batch}: pass one latent`);
    shape = rest;
  }
  if (isPacked) return unpacked(array.data, shape[0] as number, space, latentSize);
  const [found = 0, height = 0, width = 0] = shape;
  if (shape.length === 3 && height > 0 && width > 0) {
    if (found === channels) return sized({ data: array.data, cells: { width, height } }, latentSize);
    if (space.patchified && found === 4 * channels) {
      return sized(unpatchified(array.data, channels, height, width), latentSize);
    }
  }
  throw new InfGenError(
    "latent",
    `shape [${array.shape.join(", ")}] is not that of ${space.name} latents: expected ${expectedShapes(space)}, ` +
      "with or without a batch axis of 1",
  );
}

/** The shapes that a latent of a space may have, without their batch axis. */
export function expectedShapes(space: LatentSpace): string {
  const shapes = [`[${space.channels}, h, w]`];
  if (space.patchified) shapes.push(`[${4 * space.channels}, h/2, w/2]`);
  if (space.packed) shapes.push(`[tokens, ${4 * space.channels}]`);
  return shapes.join(" or ");
}

/** A shape without the time axis of [N, C, 1, h, w] and [C, 1, h, w], which pictures in video models have. */
function withoutFrame(shape: readonly number[], space: LatentSpace): readonly number[] {
  const known = space.patchified ? [space.channels, 4 * space.channels] : [space.channels];
  const [first = 0, second = 0, third = 0] = shape;
  if (shape.length === 5 && known.includes(second) && third === 1) return [first, second, ...shape.slice(3)];
  if (shape.length === 4 && known.includes(first) && !known.includes(second) && second === 1)
    return [first, ...shape.slice(2)];
  return shape;
}

/** A plain latent, if it is that of a picture of the size that was requested. Pipelines round down to whole cells or tokens. */
function sized(latent: { data: Float32Array; cells: Size }, size?: Size): { data: Float32Array; cells: Size } {
  const { width, height } = latent.cells;
  const rounded = (side: number, part: number) => Math.floor(side / (8 * part)) * part;
  if (size && ![1, 2].some((part) => rounded(size.width, part) === width && rounded(size.height, part) === height)) {
    throw new InfGenError(
      "latent",
      `the latent's picture has ${8 * width}x${8 * height} pixels, and not ${size.width}x${size.height}: leave out ` +
        "latentSize, which only packed tokens need",
    );
  }
  return latent;
}

/** Unpack [h/2 * w/2, 4C]. Pipelines round sizes down to whole tokens of 16 pixels. */
function unpacked(
  data: Float32Array,
  tokens: number,
  space: LatentSpace,
  size?: Size,
): { data: Float32Array; cells: Size } {
  if (!size) {
    throw new InfGenError(
      "latent",
      `${tokens} packed tokens: say the pipeline's width and height in pixels (latentSize)`,
    );
  }
  const width = Math.floor(size.width / 16);
  const height = Math.floor(size.height / 16);
  if (width < 1 || height < 1 || width * height !== tokens) {
    throw new InfGenError(
      "latent",
      `${tokens} packed tokens do not make a latent of ${size.width}x${size.height} pixels, which has ` +
        `${width * height}`,
    );
  }
  const packed = 4 * space.channels;
  const planes = new Float32Array(data.length);
  for (let token = 0; token < tokens; token++) {
    for (let channel = 0; channel < packed; channel++)
      planes[channel * tokens + token] = data[token * packed + channel] as number;
  }
  return unpatchified(planes, space.channels, height, width);
}

/** Unpatchify [4C, h, w] to [C, 2h, 2w]. A patchified channel is channel * 4 + row * 2 + column. */
function unpatchified(
  data: Float32Array,
  channels: number,
  height: number,
  width: number,
): { data: Float32Array; cells: Size } {
  const cells = { width: 2 * width, height: 2 * height };
  const result = new Float32Array(data.length);
  let at = 0;
  for (let channel = 0; channel < channels; channel++) {
    for (let part = 0; part < 4; part++) {
      for (let y = 0; y < height; y++) {
        const row = (channel * cells.height + 2 * y + (part >> 1)) * cells.width + (part & 1);
        for (let x = 0; x < width; x++) result[row + 2 * x] = data[at++] as number;
      }
    }
  }
  return { data: result, cells };
}
