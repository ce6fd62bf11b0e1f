/** The messages between a page and the worker that decodes for it. */

import type { BackendName } from "../backend.js";
import type { OpenOptions } from "../decoder.js";
import type { ErrorKind } from "../errors.js";
import type { Box, Size } from "../geometry/box.js";
import type { SizeLike } from "../geometry/sizes.js";
import type { Latent } from "../latent/latent.js";
import type { Pixels } from "../picture.js";

/** What the worker can be asked to do, and what it answers. */
export interface Tasks {
  /** Open a bundle: the address of its folder, or the content of its zip. */
  open: { ask: { model: string | Uint8Array; options: OpenOptions }; answer: { model: number; spaces: string[] } };
  /** Plan a picture with the model that was opened last. The worker keeps the picture under its number. */
  picture: { ask: { model: number; latent: Latent; size: SizeLike | undefined }; answer: Planned };
  read: { ask: { picture: number; size: Size; region: Box }; answer: Pixels };
  /** Forget a picture and the contexts of its latent. */
  release: { ask: { picture: number }; answer: null };
}

/** A picture that was planned. */
export interface Planned {
  readonly picture: number;
  readonly size: Size;
  readonly native: Size;
  readonly tile: number;
  readonly backend: { readonly name: BackendName; readonly reason: string };
}

/** A message to the worker: a task, or the number of a task to stop. */
export type Request =
  { [T in keyof Tasks]: { id: number; task: T; ask: Tasks[T]["ask"] } }[keyof Tasks] | { stop: number };

/** A message from the worker. */
export type Reply =
  { id: number; answer: Tasks[keyof Tasks]["answer"] } | { id: number; error: { kind: ErrorKind; message: string } };
