/** The features that prefill computes, in parts where it is local. It mirrors `infgen_rt/nodes/features.py`. */

import type { Engine, Inputs } from "../engine.js";
import { type Box, boxOf, grow, relativeTo } from "../geometry/box.js";
import type { Latent } from "../latent/latent.js";
import { cut, planes, type Values } from "../values.js";
import { gatherMoments } from "./moments.js";

/** The features [1, F, h, w] of a latent. */
export class Features {
  readonly #latent: Latent;
  readonly #engine: Engine;
  readonly #side: number;
  #moments: Values | undefined;
  #whole: Values | undefined;

  /** @param side the longest side of a part in which statistics are gathered, in cells. */
  constructor(latent: Latent, engine: Engine, side: number) {
    this.#latent = latent;
    this.#engine = engine;
    this.#side = side;
  }

  /** The features of some cells. */
  async read(box: Box, signal?: AbortSignal): Promise<Values> {
    const { manifest } = this.#engine;
    const all = boxOf(this.#latent.cells);
    if (!manifest.prefillIsLocal && !this.#engine.has("statistics")) {
      this.#whole ??= await this.#prefill(all, {}, signal);
      return cut(this.#whole, box);
    }
    const moments = this.#engine.has("statistics") ? { moments: await this.#gathered(signal) } : {};
    const seen = grow(box, manifest.halo.prefill, all);
    return cut(await this.#prefill(seen, moments, signal), relativeTo(box, seen));
  }

  async #gathered(signal?: AbortSignal): Promise<Values> {
    this.#moments ??= await gatherMoments(this.#latent, this.#engine, this.#side, signal);
    return this.#moments;
  }

  #prefill(box: Box, others: Inputs, signal?: AbortSignal): Promise<Values> {
    const latent = cut(planes(this.#latent.data, this.#latent.cells), box);
    return this.#engine.run("prefill", { latent, ...others }, signal);
  }
}
