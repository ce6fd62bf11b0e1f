/** Tilings of tokens or cells. It mirrors `infgen_rt/geometry/tiling.py`. */

import { type Box, grow, type Size } from "./box.js";

/** A grid cut into columns and rows, given by their ascending edges. */
export class Tiling {
  constructor(
    readonly columns: readonly number[],
    readonly rows: readonly number[],
  ) {}

  /** The fewest tiles with sides no longer than `longest`, balanced so that none is a sliver. */
  static of(size: Size, longest: number): Tiling {
    return new Tiling(split(size.width, longest), split(size.height, longest));
  }

  /** The whole grid. */
  get box(): Box {
    return { x: 0, y: 0, width: this.columns.at(-1) ?? 0, height: this.rows.at(-1) ?? 0 };
  }

  /** The number of tiles. */
  get count(): number {
    return (this.columns.length - 1) * (this.rows.length - 1);
  }

  /** The number of tiles per row. */
  get across(): number {
    return this.columns.length - 1;
  }

  /** The largest width and height of a tile. */
  get largest(): Size {
    const longest = (edges: readonly number[]) => Math.max(...pairs(edges).map(([start, stop]) => stop - start));
    return { width: longest(this.columns), height: longest(this.rows) };
  }

  /** The whole tiles that a box touches, row by row. */
  touching(box: Box): Box[] {
    const columns = pairs(this.columns).filter(([left, right]) => right > box.x && left < box.x + box.width);
    const rows = pairs(this.rows).filter(([top, bottom]) => bottom > box.y && top < box.y + box.height);
    return rows.flatMap(([top, bottom]) =>
      columns.map(([left, right]) => ({ x: left, y: top, width: right - left, height: bottom - top })),
    );
  }
}

/** A tiling of cells in which each tile is computed with a halo of `halo` cells around it. */
export class HaloTiling {
  constructor(
    readonly tiling: Tiling,
    readonly halo: number,
  ) {}

  /** The cells that have to be computed for a tile: the tile and its halo, clipped to the grid. */
  windowOf(tile: Box): Box {
    return grow(tile, this.halo, this.tiling.box);
  }

  /** The largest number of cells of a tile with its halo. */
  get mostCells(): number {
    const { largest, box } = this.tiling;
    const across = Math.min(largest.width + 2 * this.halo, box.width);
    return across * Math.min(largest.height + 2 * this.halo, box.height);
  }
}

/**
 * Edges that cut a length into the fewest parts of even length that are no longer than `longest`.
 *
 * All parts except the last have even lengths, and the parts differ by at most three.
 */
export function split(length: number, longest: number): number[] {
  if (length <= longest) return [0, length];
  const step = Math.min(2, longest);
  const parts = Math.ceil(length / (longest - (longest % step)));
  const edges = Array.from({ length: parts }, (_, index) => step * Math.ceil((index * length) / (parts * step)));
  return [...edges, length];
}

function pairs(edges: readonly number[]): (readonly [number, number])[] {
  return edges.slice(1).map((stop, index) => [edges[index] as number, stop] as const);
}
