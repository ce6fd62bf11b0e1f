/** Pictures that a worker decodes, so that the page stays responsive. */

import type { BackendName } from "../backend.js";
import type { OpenOptions } from "../decoder.js";
import { InfGenError } from "../errors.js";
import { type Box, boxOf, type Size } from "../geometry/box.js";
import { parseSize, type SizeLike } from "../geometry/sizes.js";
import type { Latent } from "../latent/latent.js";
import type { Pixels, Readable } from "../picture.js";
import type { Planned, Reply, Tasks } from "./protocol.js";

/**
 * Open a model in a worker. It replaces the model that was open there, whose pictures are then closed.
 *
 * @param worker a worker that runs `infgen-rt-web/worker`.
 * @param model the address of a bundle's folder, or the content of its zip.
 * @param options as for `open`, without `space`, which each latent has.
 * @throws {InfGenError} if the bundle cannot be opened.
 */
export async function connect(
  worker: Worker,
  model: string | URL | Uint8Array,
  options: OpenOptions = {},
): Promise<RemoteModel> {
  const line = new Line(worker);
  const from = model instanceof Uint8Array ? model : new URL(String(model), location.href).href;
  const { model: number, spaces } = await line.ask("open", { model: from, options });
  return new RemoteModel(line, number, spaces);
}

/** A bundle that is open in a worker. */
export class RemoteModel {
  readonly #line: Line;
  readonly #number: number;

  constructor(
    line: Line,
    number: number,
    /** The latent spaces that the bundle has a model for. */
    readonly spaces: readonly string[],
  ) {
    this.#line = line;
    this.#number = number;
  }

  /**
   * Plan a picture. Arguments and errors are those of `Decoder.picture`.
   *
   * @throws {InfGenError} also if another model was opened in the worker since.
   */
  async picture(latent: Latent, size?: SizeLike): Promise<RemotePicture> {
    const planned = await this.#line.ask("picture", { model: this.#number, latent, size });
    return new RemotePicture(this.#line, planned, planned.size);
  }
}

/** A picture that a worker decodes. */
export class RemotePicture implements Readable {
  readonly native: Size;
  readonly tile: number;
  /** What runs the graphs, and why. */
  readonly backend: { readonly name: BackendName; readonly reason: string };
  readonly #line: Line;
  readonly #planned: Planned;

  constructor(
    line: Line,
    planned: Planned,
    readonly size: Size,
  ) {
    this.#line = line;
    this.#planned = planned;
    this.native = planned.native;
    this.tile = planned.tile;
    this.backend = planned.backend;
  }

  at(size: SizeLike): RemotePicture {
    return new RemotePicture(this.#line, this.#planned, parseSize(size, this.native));
  }

  read(region: Box = boxOf(this.size), signal?: AbortSignal): Promise<Pixels> {
    return this.#line.ask("read", { picture: this.#planned.picture, size: this.size, region }, signal);
  }

  /** Forget the picture, its other sizes, and the contexts of its latent. */
  async close(): Promise<void> {
    await this.#line.ask("release", { picture: this.#planned.picture });
  }
}

interface Waiting {
  readonly resolve: (answer: never) => void;
  readonly reject: (error: InfGenError) => void;
}

/** The number of tasks so far. Several lines may lead to one worker, so they count together. */
let count = 0;

/** Sends tasks to a worker and waits for the answers. */
class Line {
  readonly #worker: Worker;
  readonly #waiting = new Map<number, Waiting>();

  constructor(worker: Worker) {
    this.#worker = worker;
    worker.addEventListener("message", ({ data }: MessageEvent<Reply>) => {
      const waiting = this.#waiting.get(data.id);
      this.#waiting.delete(data.id);
      if ("error" in data) waiting?.reject(new InfGenError(data.error.kind, data.error.message));
      else waiting?.resolve(data.answer as never);
    });
    worker.addEventListener("error", (event) => {
      const error = new InfGenError(
        "decode",
        `the worker stopped: ${event.message || "its script cannot be loaded"}; reload the page`,
      );
      for (const each of this.#waiting.values()) each.reject(error);
      this.#waiting.clear();
    });
  }

  ask<T extends keyof Tasks>(task: T, ask: Tasks[T]["ask"], signal?: AbortSignal): Promise<Tasks[T]["answer"]> {
    const id = ++count;
    const stop = () => this.#worker.postMessage({ stop: id });
    const answer = new Promise<Tasks[T]["answer"]>((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject });
      this.#worker.postMessage({ id, task, ask });
    });
    if (signal?.aborted) stop();
    signal?.addEventListener("abort", stop);
    return answer.finally(() => signal?.removeEventListener("abort", stop));
  }
}
