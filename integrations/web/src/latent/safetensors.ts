/** Reads .safetensors files, and ComfyUI's .latent, which is one. */

import { InfGenError } from "../errors.js";
import { BYTES, chooseName, type Dtype, expectBytes, type Stored, toFloats } from "./array.js";

/** ComfyUI's SaveLatent marks files of unscaled numbers with an empty tensor of this name. */
const COMFYUI_MARK = "latent_format_version_0";

interface Entry {
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly data_offsets: readonly [number, number];
}

/** Read a tensor of a .safetensors file. */
export function readSafetensors(content: Uint8Array, key?: string): Stored {
  const header = headerOf(content);
  const name = chooseName([...header.keys()], key);
  const entry = header.get(name) as Entry;
  if (!(entry.dtype in BYTES)) {
    throw new InfGenError(
      "latent",
      `holds a tensor '${name}' of ${entry.dtype}, and a latent is float16, bfloat16, float32 or float64: ` +
        "convert it before it is saved, as with tensor.to(torch.bfloat16)",
    );
  }
  const dtype = entry.dtype as Dtype;
  const values = content.subarray(8 + lengthOf(content));
  const [start, stop] = entry.data_offsets;
  if (!(start >= 0 && start <= stop && stop <= values.length)) {
    throw new InfGenError(
      "latent",
      `is truncated: tensor '${name}' ends at byte ${stop} of ${values.length}; save or copy it again`,
    );
  }
  expectBytes(stop - start, entry.shape, dtype);
  const data = toFloats(values.subarray(start, stop), dtype);
  return { data, shape: entry.shape, comfyui: name === "latent_tensor" && header.has(COMFYUI_MARK) };
}

function lengthOf(content: Uint8Array): number {
  return Number(new DataView(content.buffer, content.byteOffset, 8).getBigUint64(0, true));
}

function headerOf(content: Uint8Array): Map<string, Entry> {
  const damaged = "is damaged or not a .npy, .npz or .safetensors file: save it again";
  if (content.length < 8 || lengthOf(content) > content.length - 8) throw new InfGenError("latent", damaged);
  let header: unknown;
  try {
    header = JSON.parse(new TextDecoder().decode(content.subarray(8, 8 + lengthOf(content))));
  } catch (error) {
    throw new InfGenError("latent", damaged, error);
  }
  const entries = Object.entries(header as Record<string, unknown>).filter(([name]) => name !== "__metadata__");
  if (!entries.every((pair): pair is [string, Entry] => isEntry(pair[1]))) throw new InfGenError("latent", damaged);
  return new Map(entries);
}

function isEntry(value: unknown): value is Entry {
  if (typeof value !== "object" || value === null) return false;
  const { dtype, shape, data_offsets: offsets } = value as Record<string, unknown>;
  const whole = (list: unknown): list is number[] =>
    Array.isArray(list) && list.every((each) => Number.isSafeInteger(each) && each >= 0);
  return typeof dtype === "string" && whole(shape) && whole(offsets) && offsets.length === 2;
}
