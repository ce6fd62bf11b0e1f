/** The sizes of pictures, as people write them. It mirrors `parse_size` of `infgen_rt/geometry/shapes.py`. */

import { InfGenError } from "../errors.js";
import { type Size, sizeText } from "./box.js";

/** The longest side of a picture, in pixels. */
export const MAX_SIDE = 2 ** 18;

/** A size: a width and height, a factor of the native size, or text such as `2x`, `3840x2160`, `8k` and `x2160`. */
export type SizeLike = Size | number | string;

const NAMED: ReadonlyMap<string, Size> = new Map([
  ["1080p", { width: 1920, height: 1080 }],
  ["1440p", { width: 2560, height: 1440 }],
  ["4k", { width: 3840, height: 2160 }],
  ["8k", { width: 7680, height: 4320 }],
  ["16k", { width: 15360, height: 8640 }],
]);

/**
 * Parse a picture's size.
 *
 * @param value the size. Undefined for the native size.
 * @param native the picture's size at scale 1, in pixels.
 * @throws {InfGenError} if it is not understood, or a side is below 1 or above `MAX_SIDE` pixels.
 */
export function parseSize(value: SizeLike | undefined, native: Size): Size {
  const size = parsed(value, native);
  const sides = [size.width, size.height];
  if (!sides.every(Number.isInteger)) {
    throw new InfGenError("plan", `size ${sizeText(size)} is not in whole pixels`);
  }
  if (Math.min(...sides) < 1 || Math.max(...sides) > MAX_SIDE) {
    throw new InfGenError(
      "plan",
      `size ${sizeText(size)} is out of bounds: each side must be from 1 to ${MAX_SIDE} pixels`,
    );
  }
  return size;
}

/** A number rounded to the nearest whole one, and halves to the even one, as Python rounds. */
export function roundEven(value: number): number {
  const floor = Math.floor(value);
  const rest = value - floor;
  return rest === 0.5 ? floor + (floor % 2) : Math.round(value);
}

function parsed(value: SizeLike | undefined, native: Size): Size {
  if (value === undefined) return native;
  if (typeof value === "number") return scaled(value, native);
  if (typeof value !== "string") return { width: value.width, height: value.height };
  const text = value.trim().toLowerCase();
  const named = NAMED.get(text);
  if (named) return named;
  const both = /^(\d{1,9})x(\d{1,9})$/.exec(text);
  if (both) return { width: Number(both[1]), height: Number(both[2]) };
  const tall = /^x(\d{1,9})$/.exec(text);
  if (tall) {
    const height = Number(tall[1]);
    return { width: Math.max(1, roundEven((height * native.width) / native.height)), height };
  }
  const factor = /^(\d{1,9}(?:\.\d+)?)x$/.exec(text);
  if (factor) {
    const number = Number(factor[1]);
    // "3x" is a factor and "3840x" a width. The limit between them is 64, as in Python.
    if (text.includes(".") || number < 64) return scaled(number, native);
    return { width: number, height: Math.max(1, roundEven((number * native.height) / native.width)) };
  }
  const names = [...NAMED.keys()].join(", ");
  throw new InfGenError(
    "plan",
    `size '${value}' is not understood: expected 3840x2160, ${names}, x2160 or a factor such as 2x`,
  );
}

function scaled(factor: number, native: Size): Size {
  if (!(Number.isFinite(factor) && factor > 0)) {
    throw new InfGenError("plan", `size factor ${factor} is not usable: expected a number above 0`);
  }
  return { width: roundEven(native.width * factor), height: roundEven(native.height * factor) };
}
