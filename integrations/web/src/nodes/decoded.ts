/** A picture's pixels, at the size at which they are decoded. It mirrors `infgen_rt/nodes/decoded.py`. */

import { contextFor, type Enlargement, graphName } from "../bundle/manifest.js";
import type { Engine } from "../engine.js";
import { InfGenError } from "../errors.js";
import { type Box, boxOf, grow, relativeTo } from "../geometry/box.js";
import type { Grid } from "../geometry/grid.js";
import { cut, type Values, vector } from "../values.js";
import type { Contexts } from "./context.js";

/** A picture's pixels as planes [1, 3, h, w], about 0 to 1. */
export class Decoded {
  readonly #enlargement: Enlargement;

  constructor(
    readonly contexts: Contexts,
    readonly grid: Grid,
    readonly engine: Engine,
  ) {
    this.#enlargement = contextFor(engine.manifest, grid.scale);
  }

  /** The pixels of a box. Its tokens are decoded with a halo, which makes them exact and is then dropped. */
  async read(box: Box, signal?: AbortSignal): Promise<Values> {
    const { grid, engine } = this;
    const { halo } = engine.manifest;
    const tokens = grow(grid.tokensOf(box), halo.tokens, boxOf(grid.tokens));
    const cells = grid.contextOf(tokens, halo.cells);
    const context = await this.contexts.read(cells, this.#enlargement, signal);
    const keys = grid.cellCentres(cells);
    const centres = grid.tokenCentres(tokens);
    const inputs = {
      context,
      key_y: vector(keys.y),
      key_x: vector(keys.x),
      token_y: vector(centres.y),
      token_x: vector(centres.x),
      extent: vector([grid.cells.height, grid.cells.width]),
      scale: vector(grid.scale),
    };
    const image = await engine.run(graphName("decode", this.#enlargement), inputs, signal);
    const pixels = cut(image, relativeTo(box, grid.pixelsOf(tokens)));
    if (!pixels.data.every(Number.isFinite)) {
      const where = `${box.x},${box.y},${box.width},${box.height}`;
      const remedy = engine.backend.name === "webgpu" ? ', or use backend: "wasm"' : "";
      throw new InfGenError(
        "decode",
        `the model gave NaN or infinite pixels in ${where}: look at the latent's numbers${remedy}`,
      );
    }
    return pixels;
  }
}
