/** The loaded graphs of one model. Work on them is done one after another. */

import type * as Ort from "onnxruntime-web";

import type { Backend } from "./backend.js";
import type { Bundle } from "./bundle/bundle.js";
import { type Manifest, weightsOf } from "./bundle/manifest.js";
import { checkGoesOn, InfGenError, oneLine } from "./errors.js";
import type { Values } from "./values.js";

/** The inputs of a graph, by name. */
export type Inputs = Readonly<Record<string, Values>>;

/** Loads graphs when they are first needed, and runs them. */
export class Engine {
  readonly #sessions = new Map<string, Promise<Ort.InferenceSession>>();
  #last: Promise<unknown> = Promise.resolve();
  #closed = false;

  constructor(
    readonly bundle: Bundle,
    readonly manifest: Manifest,
    readonly backend: Backend,
  ) {}

  /** Whether the model has a graph. */
  has(graph: string): boolean {
    return this.manifest.graphs.has(graph);
  }

  /**
   * Do some work once all earlier work has finished. It must not call this function itself.
   *
   * @throws {InfGenError} if the work was stopped before its turn.
   */
  alone<T>(work: () => Promise<T>, signal?: AbortSignal): Promise<T> {
    const result = this.#last.then(() => {
      checkGoesOn(signal);
      return work();
    });
    this.#last = result.catch(() => undefined);
    return result;
  }

  /**
   * Run a graph.
   *
   * @returns its only output.
   * @throws {InfGenError} if it cannot be loaded, fails, or the work was stopped.
   */
  async run(graph: string, inputs: Inputs, signal?: AbortSignal): Promise<Values> {
    const session = await this.#session(graph);
    // WebAssembly blocks the thread. Before each run, the event loop gets a turn in which work can be stopped.
    await new Promise((resolve) => setTimeout(resolve));
    checkGoesOn(signal);
    return this.#run(graph, session, inputs);
  }

  /** Free the graphs, after the work in progress. */
  async close(): Promise<void> {
    this.#closed = true;
    await this.#last;
    const sessions = [...this.#sessions.values()];
    this.#sessions.clear();
    for (const each of await Promise.allSettled(sessions)) {
      if (each.status === "fulfilled") await each.value.release();
    }
  }

  async #run(graph: string, session: Ort.InferenceSession, inputs: Inputs): Promise<Values> {
    const { ort, name } = this.backend;
    const feeds = Object.entries(inputs).map(
      ([key, { data, dims }]) => [key, new ort.Tensor("float32", data, [...dims])] as const,
    );
    let output: Ort.Tensor | undefined;
    try {
      output = Object.values(await session.run(Object.fromEntries(feeds)))[0] as Ort.Tensor;
      return { data: (await output.getData()) as Float32Array, dims: output.dims };
    } catch (error) {
      const remedy = name === "webgpu" ? 'pass less memory, or backend: "wasm"' : "pass less memory";
      throw new InfGenError("decode", `${graph} failed on ${name}: ${oneLine(error)}; ${remedy}`, error);
    } finally {
      output?.dispose();
    }
  }

  #session(graph: string): Promise<Ort.InferenceSession> {
    this.#checkOpen();
    let session = this.#sessions.get(graph);
    if (!session) {
      session = this.#load(graph);
      this.#sessions.set(graph, session);
      // After a failure, the next call tries again.
      session.catch(() => this.#sessions.delete(graph));
    }
    return session;
  }

  async #load(graph: string): Promise<Ort.InferenceSession> {
    const file = this.manifest.graphs.get(graph);
    if (file === undefined) throw new InfGenError("bundle", `the model has no graph '${graph}': export it again`);
    const weights = weightsOf(this.manifest, graph);
    const [content, shared] = await Promise.all([
      this.bundle.read(file),
      weights ? this.bundle.weights(weights) : undefined,
    ]);
    const options: Ort.InferenceSession.SessionOptions = {
      // What WebGPU lacks of a graph runs in WebAssembly.
      executionProviders: this.backend.name === "webgpu" ? ["webgpu", "wasm"] : ["wasm"],
      // Errors only. Warnings tell which operators run in WebAssembly.
      logSeverityLevel: 3,
      ...(weights && shared ? { externalData: [{ path: weights, data: shared }] } : {}),
    };
    try {
      return await this.backend.ort.InferenceSession.create(content, options);
    } catch (error) {
      throw new InfGenError(
        "backend",
        `${this.backend.name} cannot load ${graph}: ${oneLine(error)}; use another browser or backend`,
        error,
      );
    }
  }

  #checkOpen(): void {
    if (this.#closed) throw new InfGenError("decode", "the decoder is closed: read what you need before close()");
  }
}
