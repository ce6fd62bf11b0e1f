/** Sizes of tiles that fit in memory, and the picture that is decoded for one that is asked for. */

import type { Enlargement, Manifest } from "./bundle/manifest.js";
import { InfGenError } from "./errors.js";
import { type Size, sizeText } from "./geometry/box.js";
import { Grid } from "./geometry/grid.js";
import { HaloTiling, Tiling } from "./geometry/tiling.js";
import { roundEven } from "./geometry/sizes.js";

/** Bytes for tiles and their contexts, unless others are asked for. A page's WebAssembly has 4 GiB at most. */
export const MEMORY = 1.5 * 2 ** 30;

/** Sides in cells of the tiles in which a context is made. Smaller tiles spend more of the work on halos. */
const CONTEXT_SIDES = [128, 96, 64, 48, 32, 24, 16, 8];

/** Sides in tokens of a picture's tiles. */
const TILE_SIDES = [64, 48, 32, 24, 16, 8];

/** Below this scale, a picture has fewer pixels than its latent has detail. */
const LEAST_SCALE = 0.25;

/** The side of the tiles in which a context is made, in cells: the largest whose graphs run in half of the memory. */
export function contextSide(cells: Size, enlargement: Enlargement, manifest: Manifest, memory: number): number {
  const { trunkPerCell, refinePerCell } = manifest.memory;
  const fits = (side: number) => {
    const { mostCells } = new HaloTiling(Tiling.of(cells, side), enlargement.halo);
    return (trunkPerCell + refinePerCell) * mostCells <= memory / 2;
  };
  return CONTEXT_SIDES.find(fits) ?? 8;
}

/** The side of the parts in which statistics are gathered, in cells: the whole latent if it fits in half the memory. */
export function statisticsSide(cells: Size, manifest: Manifest, memory: number): number {
  const fits = (side: number) => {
    const { mostCells } = new HaloTiling(Tiling.of(cells, side), manifest.halo.prefill);
    return manifest.memory.statisticsPerCell * mostCells <= memory / 2;
  };
  return [Math.max(cells.width, cells.height), ...CONTEXT_SIDES].find(fits) ?? 8;
}

/** The side of a picture's tiles in tokens: the largest that is decoded in a quarter of the memory. */
export function tileSide(manifest: Manifest, memory: number): number {
  const { tokens } = manifest.halo;
  return TILE_SIDES.find((side) => manifest.memory.decodePerToken * (side + 2 * tokens) ** 2 <= memory / 4) ?? 8;
}

/** The grid of the picture to decode for another one, which is resampled from it beyond the model's scales. */
export function decodedGrid(grid: Grid, manifest: Manifest): Grid {
  const [low, high] = manifest.scaleRange;
  const side = (whole: number, cells: number) => {
    const own = grid.patch * cells;
    return Math.min(Math.max(whole, roundEven(low * own)), roundEven(high * own));
  };
  const width = side(grid.picture.width, grid.cells.width);
  const height = side(grid.picture.height, grid.cells.height);
  return new Grid(grid.cells, { width, height }, grid.patch);
}

/**
 * Check that a picture of a latent is possible.
 *
 * @throws {InfGenError} if the latent or the picture is out of bounds.
 */
export function checkBounds(grid: Grid, manifest: Manifest): void {
  const [low, high] = manifest.latentSides;
  const { cells } = grid;
  if (Math.min(cells.width, cells.height) < low || Math.max(cells.width, cells.height) > high) {
    throw new InfGenError(
      "plan",
      `latent of ${sizeText(cells)} cells is out of bounds: the model takes ${low} to ${high} a side`,
    );
  }
  if (Math.min(...grid.scale) < LEAST_SCALE) {
    const least = {
      width: Math.ceil(cells.width * grid.patch * LEAST_SCALE),
      height: Math.ceil(cells.height * grid.patch * LEAST_SCALE),
    };
    throw new InfGenError(
      "plan",
      `size ${sizeText(grid.picture)} is too small for a latent of ${sizeText(cells)} cells: at least ` +
        `${sizeText(least)}`,
    );
  }
}
