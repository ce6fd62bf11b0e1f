/** Reads NumPy's .npy and .npz files. */

import { unzipSync } from "fflate";

import { InfGenError } from "../errors.js";
import { chooseName, type Dtype, expectBytes, type FloatArray, product, toFloats } from "./array.js";

const DTYPES: ReadonlyMap<string, Dtype> = new Map([
  ["f2", "F16"],
  ["f4", "F32"],
  ["f8", "F64"],
  // NumPy has no bfloat16. Arrays of ml_dtypes' bfloat16 are saved as two opaque bytes.
  ["V2", "BF16"],
]);

/** Whether a file starts as .npy files do. */
export function isNpy(content: Uint8Array): boolean {
  return content[0] === 0x93 && new TextDecoder().decode(content.subarray(1, 6)) === "NUMPY";
}

/** Read a .npy file. */
export function readNpy(content: Uint8Array): FloatArray {
  const view = new DataView(content.buffer, content.byteOffset, content.byteLength);
  const long = (content[6] ?? 1) > 1;
  const start = long ? 12 : 10;
  if (content.length < start) throw new InfGenError("latent", "is truncated: copy it again");
  const end = start + (long ? view.getUint32(8, true) : view.getUint16(8, true));
  const header = new TextDecoder().decode(content.subarray(start, end));
  const described = /'descr':\s*'([^']*)'/.exec(header)?.[1];
  const fortran = /'fortran_order':\s*True/.test(header);
  const sides = /'shape':\s*\(([\d,\s]*)\)/.exec(header)?.[1];
  if (described === undefined || sides === undefined) {
    throw new InfGenError("latent", "is damaged, or holds a structured array: save plain float32 numbers");
  }
  if (described.includes("O"))
    throw new InfGenError(
      "latent",
      "holds Python objects (pickle), which are never loaded: save plain float32 numbers",
    );
  const dtype = DTYPES.get(described.slice(1));
  if (!dtype) {
    throw new InfGenError(
      "latent",
      `holds numbers of type '${described}', and a latent's are float16, bfloat16, float32 or float64: convert ` +
        "them to float32, if they are those of the latent",
    );
  }
  const shape = sides
    .split(",")
    .filter((side) => side.trim())
    .map(Number);
  const bytes = content.subarray(end);
  expectBytes(bytes.length, shape, dtype);
  const data = toFloats(bytes, dtype, described[0] !== ">");
  return { data: fortran ? reordered(data, shape) : data, shape };
}

/** Read an array of a .npz file. */
export function readNpz(content: Uint8Array, key?: string): FloatArray {
  const names: string[] = [];
  unzipSync(content, { filter: (file) => !names.push(file.name) });
  if (names.some((name) => name.endsWith("data.pkl"))) {
    throw new InfGenError(
      "latent",
      "is a PyTorch pickle, which is never loaded because it could run code: save the latent with safetensors or " +
        "numpy.save",
    );
  }
  if (names.includes("manifest.json"))
    throw new InfGenError("latent", "is a model bundle, and not a latent: pass it as the model");
  const plain = (name: string) => name.replace(/\.npy$/, "");
  const name = chooseName(names.map(plain), key);
  const found = Object.values(unzipSync(content, { filter: (file) => plain(file.name) === name }))[0];
  return readNpy(found as Uint8Array);
}

/** The numbers of an array in Fortran's order, in that of C. */
function reordered(data: Float32Array, shape: readonly number[]): Float32Array {
  const result = new Float32Array(data.length);
  const index = shape.map(() => 0);
  const strides = shape.map((_, axis) => product(shape.slice(0, axis)));
  for (let position = 0; position < result.length; position++) {
    result[position] = data[index.reduce((sum, value, axis) => sum + value * (strides[axis] as number), 0)] as number;
    for (let axis = shape.length - 1; axis >= 0; axis--) {
      index[axis] = (index[axis] as number) + 1;
      if ((index[axis] as number) < (shape[axis] as number)) break;
      index[axis] = 0;
    }
  }
  return result;
}
