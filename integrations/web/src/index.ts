/**
 * Decodes a diffusion latent into a picture of any size, tile by tile, in a browser.
 *
 * ```ts
 * const decoder = await open("/model/", { space: "flux2" });
 * const picture = decoder.picture(await readLatent(file, { space: "flux2" }), "2x");
 * const pixels = await picture.read({ x: 0, y: 0, width: 640, height: 480 });
 * ```
 */

export type { BackendName, BackendOptions } from "./backend.js";
export { Bundle } from "./bundle/bundle.js";
export { bundleAt, type BundleFiles, bundleInZip } from "./bundle/files.js";
export type { Manifest } from "./bundle/manifest.js";
export { Decoder, open, type OpenOptions } from "./decoder.js";
export { type ErrorKind, InfGenError, oneLine } from "./errors.js";
export type { Box, Size } from "./geometry/box.js";
export type { SizeLike } from "./geometry/sizes.js";
export type { FloatArray, Stored } from "./latent/array.js";
export {
  asLatent,
  type Latent,
  type LatentOptions,
  type Normalisation,
  readArray,
  readLatent,
} from "./latent/latent.js";
export { type LatentSpace, SPACES, spacesOf } from "./latent/spaces.js";
export { Picture, type Pixels, type Readable } from "./picture.js";
export { pngStream, type SaveOptions, toPng } from "./png.js";
export { type TileOptions, type TileSource, tileSource } from "./tiles.js";
export { connect, RemoteModel, RemotePicture } from "./worker/client.js";
