/** A latent's contexts, made one tile at a time and kept. It mirrors `infgen_rt/nodes/context.py`. */

import { type Enlargement, graphName } from "../bundle/manifest.js";
import type { Engine } from "../engine.js";
import { type Box, intersect, relativeTo, same, type Size } from "../geometry/box.js";
import { HaloTiling, Tiling } from "../geometry/tiling.js";
import type { Latent } from "../latent/latent.js";
import { contextSide, statisticsSide } from "../plan.js";
import { copyBox, cut, emptyPlanes, type Values } from "../values.js";
import { Features } from "./features.js";

/** A latent's contexts, one per enlargement. All pictures of the latent share them. */
export class Contexts {
  readonly #features: Features;
  readonly #engine: Engine;
  readonly #memory: number;
  /** Tiles in the order of their last use. */
  readonly #kept = new Map<string, Values>();
  #bytes = 0;

  /** @param memory bytes that contexts may use. */
  constructor(
    readonly latent: Latent,
    engine: Engine,
    memory: number,
  ) {
    this.#engine = engine;
    this.#memory = memory;
    this.#features = new Features(latent, engine, statisticsSide(latent.cells, engine.manifest, memory));
  }

  /** The size of the latent in cells. */
  get cells(): Size {
    return this.latent.cells;
  }

  /** The context [1, D, h, w] of some cells. */
  async read(box: Box, enlargement: Enlargement, signal?: AbortSignal): Promise<Values> {
    if (!this.#engine.has(graphName("refine", enlargement))) return this.#features.read(box, signal);
    const side = contextSide(this.cells, enlargement, this.#engine.manifest, this.#memory);
    const tiles = new HaloTiling(Tiling.of(this.cells, side), enlargement.halo);
    const result = emptyPlanes(enlargement.channels, box);
    for (const tile of tiles.tiling.touching(box)) {
      const values = await this.#tile(tile, tiles, enlargement, signal);
      if (same(tile, box)) return values;
      const part = intersect(tile, box);
      copyBox(values, relativeTo(part, tile), result, relativeTo(part, box));
    }
    return result;
  }

  async #tile(tile: Box, tiles: HaloTiling, enlargement: Enlargement, signal?: AbortSignal): Promise<Values> {
    const key = `${enlargement.factor} ${tile.x} ${tile.y} ${tile.width} ${tile.height}`;
    let values = this.#kept.get(key);
    if (values) {
      this.#kept.delete(key);
    } else {
      const window = tiles.windowOf(tile);
      values = cut(await this.#refined(window, enlargement, signal), relativeTo(tile, window));
      this.#bytes += values.data.byteLength;
    }
    this.#kept.set(key, values);
    for (const [oldest, { data }] of this.#kept) {
      if (this.#bytes <= this.#memory / 2 || oldest === key) break;
      this.#kept.delete(oldest);
      this.#bytes -= data.byteLength;
    }
    return values;
  }

  async #refined(window: Box, enlargement: Enlargement, signal?: AbortSignal): Promise<Values> {
    const features = await this.#features.read(window, signal);
    const fine = this.#engine.has("trunk") ? { fine: await this.#engine.run("trunk", { features }, signal) } : {};
    return this.#engine.run(graphName("refine", enlargement), { features, ...fine }, signal);
  }
}
