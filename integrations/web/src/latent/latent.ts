/** Reads latents from files, and checks and normalises them. */

import { InfGenError, oneLine } from "../errors.js";
import type { Size } from "../geometry/box.js";
import type { FloatArray, Stored } from "./array.js";
import { plainLatent } from "./layout.js";
import { isNpy, readNpy, readNpz } from "./npy.js";
import { readSafetensors } from "./safetensors.js";
import { type LatentSpace, latentSpace, spacesOf } from "./spaces.js";

/** A latent that can be decoded: float32 [channels, height, width] in the model's normalisation. */
export interface Latent {
  readonly data: Float32Array;
  readonly space: string;
  readonly cells: Size;
}

/** Whose numbers a latent has: the diffusion model's, or the VAE's own. */
export type Normalisation = "model" | "vae";

/** How a latent is read. */
export interface LatentOptions {
  /** Its latent space. It can be left out if the shape allows only one of `spaces`. */
  readonly space?: string | undefined;
  /** The spaces to choose from, for example those of a bundle. */
  readonly spaces?: readonly string[] | undefined;
  /** By default what ComfyUI's file says, and otherwise `model`. It is never guessed from the numbers. */
  readonly normalisation?: Normalisation | undefined;
  /** The width and height in pixels that were requested from the pipeline. Only for packed latents. */
  readonly latentSize?: Size | undefined;
}

/** No latent has larger numbers, and none has a larger standard deviation in the model's normalisation. */
const LARGEST = 1e4;
const LARGEST_STD = 5;

/** The first bytes of PNG, JPEG and WebP. */
const PICTURES = [
  [0x89, 0x50, 0x4e, 0x47],
  [0xff, 0xd8, 0xff],
  [0x52, 0x49, 0x46, 0x46],
];

/**
 * Read one array from the content of a .npy, .npz or .safetensors file, or of ComfyUI's .latent.
 *
 * @param name the file's name in messages.
 * @param key the array's name, for a file with several.
 * @throws {InfGenError} if the file is damaged, of another kind, or does not contain the array.
 */
export function readArray(content: Uint8Array, name = "the file", key?: string): Stored {
  try {
    if (content.length === 0) throw new InfGenError("latent", "is empty: save the latent again");
    if (isNpy(content)) {
      if (key !== undefined) {
        throw new InfGenError(
          "latent",
          `is a .npy file: its only array has no name, and is not '${key}'; leave out the key`,
        );
      }
      return { ...readNpy(content), comfyui: false };
    }
    if (content[0] === 0x50 && content[1] === 0x4b) return { ...readNpz(content, key), comfyui: false };
    if (PICTURES.some((start) => start.every((byte, index) => content[index] === byte))) {
      throw new InfGenError(
        "latent",
        "is a picture, and not a latent: pass what a pipeline returns with output_type='latent'",
      );
    }
    return readSafetensors(content, key);
  } catch (error) {
    if (error instanceof InfGenError) throw new InfGenError(error.kind, `${name} ${error.message}`, error);
    throw new InfGenError(
      "latent",
      `${name} is damaged or not a .npy, .npz or .safetensors file: ${oneLine(error)}; save it again`,
      error,
    );
  }
}

/**
 * Convert an array into a latent that can be decoded.
 *
 * @param array [C, h, w]; patchified [4C, h/2, w/2]; or packed [h/2 * w/2, 4C]; with or without a batch axis of 1.
 * @throws {InfGenError} if the shape or the numbers are not those of a latent, or the space is ambiguous.
 */
export function asLatent(array: FloatArray | Stored, options: LatentOptions = {}): Latent {
  const space = options.space === undefined ? onlySpace(array.shape, options.spaces) : latentSpace(options.space);
  const { data, cells } = plainLatent(array, space, options.latentSize);
  const stored = "comfyui" in array && array.comfyui ? (space.comfyuiRaw ? "vae" : "model") : undefined;
  const normalisation = options.normalisation ?? stored ?? "model";
  checkNumbers(data);
  const normal = normalisation === "vae" ? normalised(data, cells, space) : data;
  const std = deviation(normal);
  if (std > LARGEST_STD) {
    throw new InfGenError(
      "latent",
      `the latent's standard deviation is ${std.toFixed(2)}, and ${LARGEST_STD} is more than any has: if its ` +
        `numbers are the VAE's own, pass normalisation: "vae"`,
    );
  }
  return { data: normal, space: space.name, cells };
}

/** Read a latent from a file. Arguments and errors are those of `readArray` and `asLatent`. */
export async function readLatent(
  file: Blob,
  options: LatentOptions & { readonly key?: string | undefined } = {},
): Promise<Latent> {
  const name = file instanceof File ? file.name : "the file";
  return asLatent(readArray(new Uint8Array(await file.arrayBuffer()), name, options.key), options);
}

function onlySpace(shape: readonly number[], names?: readonly string[]): LatentSpace {
  const found = spacesOf(shape, names);
  const [first] = found;
  if (first && found.length === 1) return first;
  const text = `shape [${shape.join(", ")}]`;
  if (!first)
    throw new InfGenError(
      "latent",
      `${text} is not a latent's of ${names ? names.join(", ") : "any known space"}: pass [channels, h, w]`,
    );
  throw new InfGenError(
    "latent",
    `${text} may be of ${found.map((each) => each.name).join(" or ")}: say which it is, as space: "${first.name}"`,
  );
}

function checkNumbers(data: Float32Array): void {
  let bad = 0;
  let largest = 0;
  for (const value of data) {
    if (!Number.isFinite(value)) bad++;
    else largest = Math.max(largest, Math.abs(value));
  }
  if (bad > 0) {
    throw new InfGenError(
      "latent",
      `${bad} of ${data.length} numbers are NaN or infinite: make the latent again, in bfloat16 or float32 if it ` +
        "was float16",
    );
  }
  if (largest > LARGEST) {
    throw new InfGenError(
      "latent",
      `the latent's numbers reach ${largest.toPrecision(3)}, where ${LARGEST} is more than any latent has: look ` +
        "at what was done to them after the sampler",
    );
  }
}

function deviation(data: Float32Array): number {
  let sum = 0;
  let squares = 0;
  for (const value of data) {
    sum += value;
    squares += value * value;
  }
  const mean = sum / data.length;
  return Math.sqrt(Math.max(0, squares / data.length - mean * mean));
}

/** Convert a VAE's own latent into the space. The divisions are in float32, as Python's are. */
function normalised(data: Float32Array, cells: Size, space: LatentSpace): Float32Array {
  const area = cells.width * cells.height;
  const count = space.vaeStd.length;
  return data.map((value, index) => {
    const channel = Math.floor(index / area);
    const cell = index % area;
    const part = 2 * (Math.floor(cell / cells.width) % 2) + ((cell % cells.width) % 2);
    const at = (length: number) => (length === 1 ? 0 : count === space.channels ? channel : 4 * channel + part);
    const mean = Math.fround(space.vaeMean[at(space.vaeMean.length)] as number);
    return Math.fround(value - mean) / Math.fround(space.vaeStd[at(count)] as number);
  });
}
