/** The worker that decodes for a page. Bundle it as a worker's script; `connect` talks to it. */

import { Bundle } from "../bundle/bundle.js";
import { bundleInZip } from "../bundle/files.js";
import { type Decoder, open, type OpenOptions } from "../decoder.js";
import { checkGoesOn, InfGenError, oneLine } from "../errors.js";
import type { Size } from "../geometry/box.js";
import type { Latent } from "../latent/latent.js";
import type { Picture } from "../picture.js";
import type { Request, Tasks } from "./protocol.js";

let model: { readonly number: number; readonly bundle: Bundle; readonly settings: OpenOptions } | undefined;
/** Ends when all models that were asked for are open. They are opened one after another, so that the last one stays. */
let opened: Promise<unknown> = Promise.resolve();
const decoders = new Map<string, Promise<Decoder>>();
const pictures = new Map<number, Picture>();
const running = new Map<number, AbortController>();
let numbers = 0;

/** Opens the model of a space when the first latent of it comes. */
function decoderFor(number: number, latent: Latent): Promise<Decoder> {
  if (model?.number !== number) {
    throw new InfGenError("bundle", "another model was opened in this worker: connect again, or in another worker");
  }
  let decoder = decoders.get(latent.space);
  if (!decoder) {
    decoder = open(model.bundle, { ...model.settings, space: latent.space });
    decoders.set(latent.space, decoder);
    decoder.catch(() => decoders.delete(latent.space));
  }
  return decoder;
}

function pictureOf(number: number): Picture {
  const picture = pictures.get(number);
  if (!picture) throw new InfGenError("decode", "the picture is closed: plan it again");
  return picture;
}

/** A picture at a size. Its tiles and contexts are shared, so that nothing but the plan is made again. */
function sized(number: number, size: Size): Picture {
  const picture = pictureOf(number);
  return picture.size.width === size.width && picture.size.height === size.height ? picture : picture.at(size);
}

type Work = { [T in keyof Tasks]: (ask: Tasks[T]["ask"], signal: AbortSignal) => Promise<Tasks[T]["answer"]> };

const work: Work = {
  open({ model: from, options }) {
    const next = opened.then(async () => {
      const bundle = await Bundle.open(typeof from === "string" ? from : bundleInZip(from));
      model = { number: ++numbers, bundle, settings: options };
      const before = [...decoders.values()];
      decoders.clear();
      pictures.clear();
      await Promise.allSettled(before.map(async (each) => (await each).close()));
      return { model: model.number, spaces: bundle.spaces };
    });
    opened = next.catch(() => undefined);
    return next;
  },
  async picture({ model: number, latent, size }) {
    const decoder = await decoderFor(number, latent);
    const picture = decoder.picture(latent, size);
    pictures.set(++numbers, picture);
    const { native, tile, size: planned } = picture;
    return { picture: numbers, size: planned, native, tile, backend: decoder.backend };
  },
  async read({ picture, size, region }, signal) {
    return sized(picture, size).read(region, signal);
  },
  async release({ picture }) {
    pictures.delete(picture);
    return null;
  },
};

async function perform(request: Exclude<Request, { stop: number }>): Promise<void> {
  const { id, task } = request;
  const stop = new AbortController();
  running.set(id, stop);
  try {
    checkGoesOn(stop.signal);
    const answer = await (work[task] as (ask: unknown, signal: AbortSignal) => Promise<unknown>)(
      request.ask,
      stop.signal,
    );
    const pixels = task === "read" ? [(answer as Tasks["read"]["answer"]).data.buffer] : [];
    self.postMessage({ id, answer }, { transfer: pixels });
  } catch (error) {
    const known = error instanceof InfGenError ? error : new InfGenError("decode", oneLine(error), error);
    self.postMessage({ id, error: { kind: known.kind, message: known.message } });
  } finally {
    running.delete(id);
  }
}

self.addEventListener("message", ({ data }: MessageEvent<Request>) => {
  if ("stop" in data) running.get(data.stop)?.abort();
  else void perform(data);
});
