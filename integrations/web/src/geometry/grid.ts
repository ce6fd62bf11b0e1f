/** The positions of tokens and cells, which are inputs of every decode. It mirrors `infgen_rt/geometry/grid.py`. */

import { type Box, boxOf, intersect, type Size } from "./box.js";

/** The centres of rows and columns, in cells of the whole latent. */
export interface Centres {
  readonly y: Float32Array;
  readonly x: Float32Array;
}

/**
 * The tokens of a picture over the cells of a latent.
 *
 * Coordinates are in cells, with the origin at the latent's top-left corner. Cell i covers [i, i + 1).
 */
export class Grid {
  /**
   * @param cells the latent's width and height in cells.
   * @param picture the picture's width and height in pixels.
   * @param patch the side of a token in pixels, which is also the side of a cell at scale 1.
   */
  constructor(
    readonly cells: Size,
    readonly picture: Size,
    readonly patch: number,
  ) {}

  /** The size of the token grid, which may reach past the picture's right and bottom edges. */
  get tokens(): Size {
    return { width: Math.ceil(this.picture.width / this.patch), height: Math.ceil(this.picture.height / this.patch) };
  }

  /** Picture pixels per cell, divided by those at scale 1: vertical and horizontal. */
  get scale(): readonly [number, number] {
    return [
      this.picture.height / (this.patch * this.cells.height),
      this.picture.width / (this.patch * this.cells.width),
    ];
  }

  /** The tokens that cover a box of pixels. */
  tokensOf(pixels: Box): Box {
    const x = Math.floor(pixels.x / this.patch);
    const y = Math.floor(pixels.y / this.patch);
    const right = Math.ceil((pixels.x + pixels.width) / this.patch);
    const bottom = Math.ceil((pixels.y + pixels.height) / this.patch);
    return { x, y, width: right - x, height: bottom - y };
  }

  /** The pixels that a box of tokens covers, clipped to the picture. */
  pixelsOf(tokens: Box): Box {
    const { patch } = this;
    const scaled = {
      x: tokens.x * patch,
      y: tokens.y * patch,
      width: tokens.width * patch,
      height: tokens.height * patch,
    };
    return intersect(scaled, boxOf(this.picture));
  }

  /** The centres of a box of tokens. */
  tokenCentres(tokens: Box): Centres {
    const [stepY, stepX] = this.#steps;
    return { y: centres(tokens.y, tokens.height, stepY), x: centres(tokens.x, tokens.width, stepX) };
  }

  /** The centres of a box of cells. */
  cellCentres(cells: Box): Centres {
    return { y: centres(cells.y, cells.height, 1), x: centres(cells.x, cells.width, 1) };
  }

  /**
   * The cells that a box of tokens sees.
   *
   * @param tokens the tokens that are decoded, halo included.
   * @param radius how far from its centre a token sees, in cells. Null for the whole latent.
   */
  contextOf(tokens: Box, radius: number | null): Box {
    if (radius === null) return boxOf(this.cells);
    const [stepY, stepX] = this.#steps;
    const [y, bottom] = cellsNear(tokens.y, tokens.y + tokens.height, stepY, radius, this.cells.height);
    const [x, right] = cellsNear(tokens.x, tokens.x + tokens.width, stepX, radius, this.cells.width);
    return { x, y, width: right - x, height: bottom - y };
  }

  get #steps(): readonly [number, number] {
    const [scaleY, scaleX] = this.scale;
    return [1 / scaleY, 1 / scaleX];
  }
}

function centres(start: number, count: number, step: number): Float32Array {
  // JavaScript computes in float64, and the array rounds once. A tile far from the origin thus gets exactly the
  // coordinates that the whole picture has.
  return Float32Array.from({ length: count }, (_, index) => (start + index + 0.5) * step);
}

/** The first and past-the-last cell whose centres are within reach of the tokens' centres, rounded outwards. */
function cellsNear(
  start: number,
  stop: number,
  step: number,
  radius: number,
  limit: number,
): readonly [number, number] {
  // Independently of the radius, samples are taken anywhere under a token. Bilinear samples reach up to one cell
  // further, and Lanczos samples three pixels, of which a token has eight.
  const reach = Math.max(radius, step / 2 + Math.max(1, (3 / 8) * step));
  const first = Math.min(Math.max(Math.floor((start + 0.5) * step - reach - 0.5), 0), limit - 1);
  const last = Math.ceil((stop - 0.5) * step + reach - 0.5);
  return [first, Math.max(Math.min(last + 1, limit), first + 1)];
}
