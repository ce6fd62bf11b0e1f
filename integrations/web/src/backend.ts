/** Chooses between WebGPU and WebAssembly, and loads ONNX Runtime for it. */

import type * as Ort from "onnxruntime-web";

import { InfGenError, oneLine } from "./errors.js";

/** What runs the graphs. */
export type BackendName = "webgpu" | "wasm";

/** How ONNX Runtime is set up. */
export interface BackendOptions {
  /** `auto` takes WebGPU where the browser has it, and otherwise WebAssembly. One that is named is used or refused. */
  readonly backend?: BackendName | "auto" | undefined;
  /** Where the `.wasm` files of onnxruntime-web are. By default, beside the script that is bundled with it. */
  readonly wasmPaths?: string | undefined;
  /** Threads of WebAssembly. More than one needs a page that is cross-origin isolated. */
  readonly threads?: number | undefined;
}

/** ONNX Runtime, ready to load graphs. */
export interface Backend {
  readonly name: BackendName;
  readonly ort: typeof Ort;
  /** Why this backend was chosen. */
  readonly reason: string;
}

/**
 * Choose a backend and load ONNX Runtime.
 *
 * @throws {InfGenError} if the backend that is named cannot be used.
 */
export async function chooseBackend(options: BackendOptions = {}): Promise<Backend> {
  const wanted = options.backend ?? "auto";
  if (!["auto", "webgpu", "wasm"].includes(wanted)) {
    throw new InfGenError("backend", `backend '${wanted}' is unknown: expected auto, webgpu or wasm`);
  }
  if (options.threads !== undefined && !(Number.isInteger(options.threads) && options.threads > 0)) {
    throw new InfGenError("backend", `${options.threads} threads are not possible: expected 1 or more`);
  }
  const problem = wanted === "wasm" ? "WebAssembly was asked for" : await problemOfWebGpu(wanted === "webgpu");
  if (wanted === "webgpu" && problem) {
    throw new InfGenError("backend", `WebGPU cannot be used: ${problem}; use another browser, or backend: "wasm"`);
  }
  const name = problem ? "wasm" : "webgpu";
  let ort: typeof Ort;
  try {
    ort = name === "webgpu" ? await import("onnxruntime-web/webgpu") : await import("onnxruntime-web/wasm");
  } catch (error) {
    throw new InfGenError(
      "backend",
      `onnxruntime-web cannot be loaded: ${oneLine(error)}; look at the address of its files`,
      error,
    );
  }
  if (options.wasmPaths !== undefined) ort.env.wasm.wasmPaths = options.wasmPaths;
  const cores = globalThis.navigator?.hardwareConcurrency ?? 1;
  ort.env.wasm.numThreads = globalThis.crossOriginIsolated ? (options.threads ?? Math.min(8, cores)) : 1;
  ort.env.logLevel = "error";
  return { name, ort, reason: problem ?? "the browser has WebGPU" };
}

/** The part of WebGPU that is used here. Its types are not in TypeScript's own libraries for all targets. */
interface Gpu {
  requestAdapter(): Promise<{ readonly info?: { readonly isFallbackAdapter?: boolean } } | null>;
}

/**
 * Why WebGPU cannot be used here. Undefined if it can.
 *
 * @param named whether it was asked for. Otherwise, WebGPU that is emulated in software counts as none, because it is
 *   slower than WebAssembly.
 */
async function problemOfWebGpu(named: boolean): Promise<string | undefined> {
  const gpu = (globalThis.navigator as { gpu?: Gpu } | undefined)?.gpu;
  if (!gpu) return "the browser has no WebGPU, or the page is neither from https nor from this machine";
  try {
    const adapter = await gpu.requestAdapter();
    if (!adapter) return "the browser gives no WebGPU adapter";
    return !named && adapter.info?.isFallbackAdapter ? "the browser's WebGPU is emulated in software" : undefined;
  } catch (error) {
    return `the browser gives no WebGPU adapter (${oneLine(error)})`;
  }
}
