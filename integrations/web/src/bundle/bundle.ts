/** An opened bundle. Files are read, and their digests checked, when they are needed. */

import { InfGenError } from "../errors.js";
import { type BundleFiles, bundleAt } from "./files.js";
import { MANIFEST, type Manifest, readModels } from "./manifest.js";

/** The models of a bundle, and the files that they share. */
export class Bundle {
  readonly #files: BundleFiles;
  /** Weights are kept, because all graphs and all models share them. */
  readonly #weights = new Map<string, Promise<Uint8Array<ArrayBuffer>>>();

  private constructor(
    files: BundleFiles,
    /** The models, one per latent space. */
    readonly models: readonly Manifest[],
  ) {
    this.#files = files;
  }

  /**
   * Open a bundle.
   *
   * @param from the address of its folder, or its files.
   * @throws {InfGenError} if there is no bundle, or it is damaged.
   */
  static async open(from: string | URL | BundleFiles): Promise<Bundle> {
    const files = typeof from === "string" || from instanceof URL ? bundleAt(from) : from;
    const text = new TextDecoder().decode(await files.read(MANIFEST));
    return new Bundle(files, readModels(text));
  }

  /** The latent spaces that the bundle has a model for. */
  get spaces(): string[] {
    return this.models.map((each) => each.latentSpace);
  }

  /**
   * The model for a latent space.
   *
   * @throws {InfGenError} if there is none.
   */
  model(space: string): Manifest {
    const found = this.models.find((each) => each.latentSpace === space);
    if (found) return found;
    throw new InfGenError(
      "bundle",
      `${this.#files.title} has no model for ${space} latents: it has one for ${this.spaces.join(", ")}; pass ` +
        "another bundle",
    );
  }

  /**
   * The content of a listed file.
   *
   * @throws {InfGenError} if its length or digest does not match the manifest.
   */
  async read(name: string): Promise<Uint8Array<ArrayBuffer>> {
    const info = this.models[0]?.files.get(name);
    if (!info) throw new InfGenError("bundle", `manifest: '${name}' is not in 'files': export the model again`);
    const content = await this.#files.read(name);
    if (content.length !== info.bytes) {
      throw new InfGenError(
        "bundle",
        `${this.#files.title} is damaged: ${name} has ${content.length} bytes, expected ${info.bytes}; copy or ` +
          "download it again",
      );
    }
    // Browsers have digests only on pages from https or this machine. Elsewhere, the length is all that is checked.
    if (globalThis.crypto?.subtle) {
      const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", content));
      const found = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
      if (found !== info.sha256) {
        throw new InfGenError(
          "bundle",
          `${this.#files.title} is damaged: the sha256 of ${name} does not match; copy or download it again`,
        );
      }
    }
    return content;
  }

  /** The content of a file with weights, which is read and checked once. */
  weights(name: string): Promise<Uint8Array<ArrayBuffer>> {
    let content = this.#weights.get(name);
    if (!content) {
      content = this.read(name);
      this.#weights.set(name, content);
      // After a failure, the next call tries again.
      content.catch(() => this.#weights.delete(name));
    }
    return content;
  }
}
