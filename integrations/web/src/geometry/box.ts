/** Sizes and boxes, in the unit that the caller uses (pixels, tokens, cells). */

/** A width and a height. */
export interface Size {
  readonly width: number;
  readonly height: number;
}

/** A rectangle: its left and top edge, and its size. */
export interface Box extends Size {
  readonly x: number;
  readonly y: number;
}

/** The box of a size, at the origin. */
export function boxOf(size: Size): Box {
  return { x: 0, y: 0, width: size.width, height: size.height };
}

/** Whether two boxes are the same. */
export function same(a: Box, b: Box): boolean {
  return a.x === b.x && a.y === b.y && a.width === b.width && a.height === b.height;
}

/** The common part of two boxes. Its width or height is 0 if there is none. */
export function intersect(a: Box, b: Box): Box {
  const x = Math.max(a.x, b.x);
  const y = Math.max(a.y, b.y);
  const right = Math.min(a.x + a.width, b.x + b.width);
  const bottom = Math.min(a.y + a.height, b.y + b.height);
  return { x, y, width: Math.max(0, right - x), height: Math.max(0, bottom - y) };
}

/** A box with a margin on every side, clipped to another box. */
export function grow(box: Box, margin: number, within: Box): Box {
  const { x, y, width, height } = box;
  return intersect({ x: x - margin, y: y - margin, width: width + 2 * margin, height: height + 2 * margin }, within);
}

/** The same box with coordinates relative to another box's top-left corner. */
export function relativeTo(box: Box, origin: Box): Box {
  return { ...box, x: box.x - origin.x, y: box.y - origin.y };
}

/** A size as text, `1920x1080`. */
export function sizeText(size: Size): string {
  return `${size.width}x${size.height}`;
}
