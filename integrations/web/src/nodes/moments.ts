/** The statistics of a whole latent that prefill needs. It mirrors `infgen_rt/nodes/moments.py`. */

import type { Engine, Inputs } from "../engine.js";
import { type Box, boxOf, relativeTo } from "../geometry/box.js";
import { HaloTiling, Tiling } from "../geometry/tiling.js";
import type { Latent } from "../latent/latent.js";
import { cut, planes, type Values, vector } from "../values.js";

/**
 * Gather the means and variances [2, blocks, groups] of a latent.
 *
 * A block's moments depend on those of the blocks before it. Therefore, a latent in parts takes one pass per block.
 *
 * @param side the longest side of a part, in cells.
 */
export async function gatherMoments(
  latent: Latent,
  engine: Engine,
  side: number,
  signal?: AbortSignal,
): Promise<Values> {
  const { moments: shape, halo } = engine.manifest;
  const [blocks, groups] = shape as readonly [number, number];
  const tiles = new HaloTiling(Tiling.of(latent.cells, side), halo.prefill);
  const known: Values = { data: new Float32Array(2 * blocks * groups).fill(-1), dims: [2, blocks, groups] };
  const whole = planes(latent.data, latent.cells);
  if (tiles.tiling.count === 1) {
    return engine.run("statistics", inputsOf(whole, boxOf(latent.cells), known), signal);
  }
  for (let block = 0; block < blocks; block++) {
    const parts: Part[] = [];
    for (const tile of tiles.tiling.touching(tiles.tiling.box)) {
      const window = tiles.windowOf(tile);
      const part = await engine.run(
        "statistics",
        inputsOf(cut(whole, window), relativeTo(tile, window), known),
        signal,
      );
      const at = (which: number) =>
        part.data.slice((which * blocks + block) * groups, (which * blocks + block + 1) * groups);
      parts.push({ means: at(0), variances: at(1), count: tile.width * tile.height });
    }
    const merged = merge(parts, groups);
    known.data.set(merged.means, block * groups);
    known.data.set(merged.variances, (blocks + block) * groups);
  }
  return known;
}

interface Part {
  readonly means: Float32Array;
  readonly variances: Float32Array;
  readonly count: number;
}

/** The inputs of the statistics graph for a part of a latent, of which the cells in `inner` count. */
function inputsOf(latent: Values, inner: Box, known: Values): Inputs {
  const [, , height = 0, width = 0] = latent.dims;
  return {
    latent,
    share_y: shares(height, inner.y, inner.height),
    share_x: shares(width, inner.x, inner.width),
    known: { data: known.data.slice(), dims: known.dims },
  };
}

function shares(count: number, first: number, counted: number): Values {
  return vector(new Float32Array(count).fill(1 / counted, first, first + counted));
}

/** Merge the moments of disjoint parts into those of all cells, by Chan, Golub and LeVeque (1979). */
function merge(parts: readonly Part[], groups: number): Part {
  const count = parts.reduce((sum, part) => sum + part.count, 0);
  const means = new Float32Array(groups);
  const variances = new Float32Array(groups);
  for (let group = 0; group < groups; group++) {
    const of = (values: Float32Array) => values[group] as number;
    const mean = parts.reduce((sum, part) => sum + part.count * of(part.means), 0) / count;
    const square = (part: Part) => of(part.variances) + (of(part.means) - mean) ** 2;
    means[group] = mean;
    variances[group] = parts.reduce((sum, part) => sum + part.count * square(part), 0) / count;
  }
  return { means, variances, count };
}
