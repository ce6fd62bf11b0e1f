/** Levels: a picture at halves of its size, as Deep Zoom and OpenSeadragon have them. */

import { type Box, boxOf, intersect, type Size } from "./box.js";

/** A picture at one size, cut into square tiles. Those at the right and at the bottom may be smaller. */
export interface Level {
  /** Its number. The last level has the picture's own size, and each level below it has half of the next. */
  readonly number: number;
  readonly size: Size;
}

/** The levels of a picture from one pixel up to its own size, numbered as in Deep Zoom. */
export function levelsOf(size: Size): Level[] {
  const sizes = [size];
  for (let last = size; Math.max(last.width, last.height) > 1; sizes.push(last)) {
    last = { width: Math.ceil(last.width / 2), height: Math.ceil(last.height / 2) };
  }
  return sizes.reverse().map((each, number) => ({ number, size: each }));
}

/** The pixels of a tile, in its level. The box is empty if the level has no such tile. */
export function tileBox(level: Level, column: number, row: number, side: number): Box {
  return intersect({ x: column * side, y: row * side, width: side, height: side }, boxOf(level.size));
}
