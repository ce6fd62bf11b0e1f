/** Opens a model and makes pictures with it. */

import { type BackendName, type BackendOptions, chooseBackend } from "./backend.js";
import { Bundle } from "./bundle/bundle.js";
import type { BundleFiles } from "./bundle/files.js";
import type { Manifest } from "./bundle/manifest.js";
import { Engine } from "./engine.js";
import { InfGenError } from "./errors.js";
import type { SizeLike } from "./geometry/sizes.js";
import type { Latent } from "./latent/latent.js";
import { Contexts } from "./nodes/context.js";
import { Picture } from "./picture.js";
import { MEMORY } from "./plan.js";

/** How a model is opened. */
export interface OpenOptions extends BackendOptions {
  /** The latent space, in a bundle of several. By default the bundle's first. */
  readonly space?: string | undefined;
  /** Bytes that a decode may use. */
  readonly memory?: number | undefined;
}

/**
 * Open a model.
 *
 * @param model the address of a bundle's folder, the files of a bundle, or a bundle that is open.
 * @throws {InfGenError} if there is no bundle, it is damaged or lacks the space, or the backend cannot be used.
 */
export async function open(model: string | URL | BundleFiles | Bundle, options: OpenOptions = {}): Promise<Decoder> {
  const memory = options.memory ?? MEMORY;
  if (!(memory > 0)) throw new InfGenError("plan", `memory of ${memory} bytes is not possible: pass a number above 0`);
  const bundle = model instanceof Bundle ? model : await Bundle.open(model);
  const manifest = bundle.model(options.space ?? (bundle.spaces[0] as string));
  return new Decoder(new Engine(bundle, manifest, await chooseBackend(options)), memory);
}

/** An opened model. Close it after use. */
export class Decoder {
  readonly #engine: Engine;
  readonly #memory: number;

  /** Use `open`. */
  constructor(engine: Engine, memory: number) {
    this.#engine = engine;
    this.#memory = memory;
  }

  /** The description of the model. */
  get manifest(): Manifest {
    return this.#engine.manifest;
  }

  /** What runs the graphs, and why. */
  get backend(): { readonly name: BackendName; readonly reason: string } {
    const { name, reason } = this.#engine.backend;
    return { name, reason };
  }

  /**
   * Plan a picture. Nothing is decoded yet.
   *
   * @param size by default the latent's native size. Beyond the model's scales, the picture is resampled by Lanczos.
   * @throws {InfGenError} if the latent is of another space, or the size is not possible.
   */
  picture(latent: Latent, size?: SizeLike): Picture {
    const { latentSpace } = this.manifest;
    if (latent.space !== latentSpace) {
      throw new InfGenError(
        "latent",
        `the latent is of ${latent.space}, and this decoder is for ${latentSpace}: open the model with space: ` +
          `"${latent.space}"`,
      );
    }
    return new Picture(new Contexts(latent, this.#engine, this.#memory), this.#engine, this.#memory, size);
  }

  /** Free the model. Its pictures can no longer be read. */
  close(): Promise<void> {
    return this.#engine.close();
  }
}
