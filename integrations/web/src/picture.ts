/** A picture: the pixels of a latent at one size, which are decoded where and when they are needed. */

import { InfGenError } from "./errors.js";
import { type Box, boxOf, intersect, relativeTo, same, type Size, sizeText } from "./geometry/box.js";
import { Grid } from "./geometry/grid.js";
import { parseSize, type SizeLike } from "./geometry/sizes.js";
import { Tiling } from "./geometry/tiling.js";
import type { Engine } from "./engine.js";
import type { Contexts } from "./nodes/context.js";
import { Decoded } from "./nodes/decoded.js";
import { Resampled } from "./nodes/resampled.js";
import { checkBounds, decodedGrid, tileSide } from "./plan.js";
import { sizeOf, type Values } from "./values.js";

/** Pixels in sRGB as a canvas takes them: red, green, blue and 255, row by row. */
export interface Pixels extends Size {
  readonly data: Uint8ClampedArray<ArrayBuffer>;
}

/** A picture that can be read by region, in this thread or in another. */
export interface Readable {
  /** Width and height in pixels. */
  readonly size: Size;
  /** The picture's size at scale 1. */
  readonly native: Size;
  /** The side of the tiles in which it is decoded, in pixels. */
  readonly tile: number;
  /**
   * Decode a region. Its pixels do not depend on how the picture is tiled.
   *
   * @param region in pixels. By default the whole picture.
   * @throws {InfGenError} if the region is not inside the picture, decoding failed, or the work was stopped.
   */
  read(region?: Box, signal?: AbortSignal): Promise<Pixels>;
  /** The same latent's picture at another size. The work on the latent is shared. */
  at(size: SizeLike): Readable;
}

/** A picture of a latent. Nothing is decoded until it is read. */
export class Picture implements Readable {
  readonly size: Size;
  readonly native: Size;
  readonly tile: number;
  readonly #contexts: Contexts;
  readonly #engine: Engine;
  readonly #memory: number;
  readonly #grid: Grid;
  readonly #tiling: Tiling;
  readonly #pixels: Decoded | Resampled;

  /** Use `Decoder.picture`, which makes the contexts. */
  constructor(contexts: Contexts, engine: Engine, memory: number, size?: SizeLike) {
    const { manifest } = engine;
    const { cells } = contexts;
    this.native = { width: cells.width * manifest.patch, height: cells.height * manifest.patch };
    this.size = parseSize(size, this.native);
    this.#contexts = contexts;
    this.#engine = engine;
    this.#memory = memory;
    this.#grid = new Grid(cells, this.size, manifest.patch);
    checkBounds(this.#grid, manifest);
    const decoded = decodedGrid(this.#grid, manifest);
    const pixels = new Decoded(contexts, decoded, engine);
    const isWhole = decoded.picture.width === this.size.width && decoded.picture.height === this.size.height;
    this.#pixels = isWhole ? pixels : new Resampled(pixels, this.size);
    // A picture that is reduced is decoded at more pixels than it has, so its tiles are smaller by as much.
    const reduced = Math.min(1, this.size.width / decoded.picture.width, this.size.height / decoded.picture.height);
    const side = Math.max(1, Math.floor(tileSide(manifest, memory) * reduced));
    this.#tiling = Tiling.of(this.#grid.tokens, side);
    this.tile = side * manifest.patch;
  }

  at(size: SizeLike): Picture {
    return new Picture(this.#contexts, this.#engine, this.#memory, size);
  }

  async read(region: Box = boxOf(this.size), signal?: AbortSignal): Promise<Pixels> {
    this.#check(region);
    const data = new Uint8ClampedArray(4 * region.width * region.height);
    for (const part of this.#parts(region)) {
      const pixels = await this.#engine.alone(() => this.#pixels.read(part, signal), signal);
      write(pixels, data, region.width, relativeTo(part, region));
    }
    return { data, width: region.width, height: region.height };
  }

  #check(region: Box): void {
    const { x, y, width, height } = region;
    const whole = [x, y, width, height].every(Number.isInteger);
    if (!whole || width < 1 || height < 1 || !same(region, intersect(region, boxOf(this.size)))) {
      const text = `region ${x},${y},${width},${height}`;
      throw new InfGenError(
        "plan",
        `${text} is empty, not in whole pixels, or reaches outside the picture, which is ${sizeText(this.size)}`,
      );
    }
  }

  /** The parts that a region is decoded in: itself if it fits in a tile, or else cut at the edges of the tiles. */
  #parts(region: Box): Box[] {
    const tokens = this.#grid.tokensOf(region);
    const { largest } = this.#tiling;
    if (tokens.width <= largest.width && tokens.height <= largest.height) return [region];
    return this.#tiling.touching(tokens).map((tile) => intersect(this.#grid.pixelsOf(tile), region));
  }
}

/** Write planes as pixels: clamped and rounded to levels, with halves upwards, in float32 as Python does. */
function write(values: Values, to: Uint8ClampedArray, width: number, at: Box): void {
  const size = sizeOf(values);
  const area = size.width * size.height;
  for (let row = 0; row < size.height; row++) {
    for (let column = 0; column < size.width; column++) {
      const from = row * size.width + column;
      const target = 4 * ((at.y + row) * width + at.x + column);
      for (let channel = 0; channel < 3; channel++) {
        const value = Math.min(Math.max(values.data[channel * area + from] as number, 0), 1);
        to[target + channel] = Math.floor(Math.fround(Math.fround(value * 255) + 0.5));
      }
      to[target + 3] = 255;
    }
  }
}
