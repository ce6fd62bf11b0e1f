/** Arrays of floating-point numbers, and their conversion to float32. */

import { InfGenError } from "../errors.js";

/** Numbers with a shape, in the order of C. */
export interface FloatArray {
  readonly data: Float32Array;
  readonly shape: readonly number[];
}

/** An array from a file. */
export interface Stored extends FloatArray {
  /** Whether ComfyUI wrote the file, which decides the normalisation. */
  readonly comfyui: boolean;
}

/** The types of numbers that are read, with their bytes. */
export const BYTES = { F64: 8, F32: 4, F16: 2, BF16: 2 } as const;

/** A type of number, by its name in safetensors. */
export type Dtype = keyof typeof BYTES;

/**
 * Convert the bytes of numbers to float32.
 *
 * @param bytes the numbers, which need not be aligned.
 * @param littleEndian the order of the bytes.
 */
export function toFloats(bytes: Uint8Array, dtype: Dtype, littleEndian = true): Float32Array {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const size = BYTES[dtype];
  const read: Record<Dtype, (at: number) => number> = {
    F64: (at) => view.getFloat64(at, littleEndian),
    F32: (at) => view.getFloat32(at, littleEndian),
    F16: (at) => half(view.getUint16(at, littleEndian)),
    BF16: (at) => wide(view.getUint16(at, littleEndian)),
  };
  const one = read[dtype];
  const floats = new Float32Array(bytes.byteLength / size);
  for (let index = 0; index < floats.length; index++) floats[index] = one(index * size);
  return floats;
}

/** The number of values of a shape. */
export function product(shape: readonly number[]): number {
  return shape.reduce((whole, side) => whole * side, 1);
}

/** Check that the bytes of an array are as many as its shape needs. */
export function expectBytes(found: number, shape: readonly number[], dtype: Dtype): void {
  const expected = product(shape) * BYTES[dtype];
  if (found !== expected) {
    throw new InfGenError(
      "latent",
      `is truncated or damaged: ${found} bytes of numbers, expected ${expected}; save or copy it again`,
    );
  }
}

/** Choose an array of a file: the only one, the one that is asked for, or one of the usual names. */
export function chooseName(names: readonly string[], key: string | undefined): string {
  const wanted =
    key !== undefined ? [key] : names.length === 1 ? names : ["latent", "latents", "latent_tensor", "samples"];
  const found = wanted.find((name) => names.includes(name));
  if (found !== undefined) return found;
  if (names.length === 0) throw new InfGenError("latent", "holds no array: save the latent in it");
  const missing = key === undefined ? "" : `, and no '${key}'`;
  throw new InfGenError(
    "latent",
    `holds ${names.slice(0, 8).join(", ")}${missing}; say which to read by its name (key)`,
  );
}

const pattern = new DataView(new ArrayBuffer(4));

/** A bfloat16, whose bits are the upper half of a float32's. */
function wide(bits: number): number {
  pattern.setUint16(0, bits);
  pattern.setUint16(2, 0);
  return pattern.getFloat32(0);
}

/** A float16. */
function half(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? Number.NaN : sign * Number.POSITIVE_INFINITY;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}
