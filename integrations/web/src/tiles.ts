/** A source of tiles for OpenSeadragon 6. It needs OpenSeadragon's types only. */

import { InfGenError, oneLine } from "./errors.js";
import { levelsOf, tileBox } from "./geometry/levels.js";
import type { Pixels, Readable } from "./picture.js";

/** What OpenSeadragon passes for a tile that it wants. */
export interface ImageJob {
  readonly src: string;
  finish(data: unknown, request: unknown, dataType: string): void;
  fail(message: string, request: unknown): void;
}

/** What `viewer.open` and the option `tileSources` of OpenSeadragon take. */
export interface TileSource {
  readonly width: number;
  readonly height: number;
  readonly tileSize: number;
  readonly tileOverlap: number;
  readonly minLevel: number;
  readonly maxLevel: number;
  getTileUrl(level: number, column: number, row: number): string;
  hasTransparency(): boolean;
  downloadTileStart(job: ImageJob): void;
  downloadTileAbort(job: ImageJob): void;
}

/** How tiles are made. */
export interface TileOptions {
  /** The side of a tile in pixels. */
  readonly side?: number | undefined;
  /** Called with errors, which OpenSeadragon itself only counts. */
  readonly failed?: ((error: InfGenError) => void) | undefined;
}

let sources = 0;

/** What stops the tiles that are being made. */
const stops = new WeakMap<ImageJob, AbortController>();

/**
 * Make a source of tiles of a picture.
 *
 * Each level is decoded at its own size. The levels are those down to the picture's native size, which has so few
 * pixels that OpenSeadragon reduces them itself.
 */
export function tileSource(picture: Readable, options: TileOptions = {}): TileSource {
  const side = options.side ?? 256;
  const all = levelsOf(picture.size);
  const isDecoded = (each: { readonly width: number; readonly height: number }) =>
    each.width >= picture.native.width && each.height >= picture.native.height;
  const smallest = all.find((level) => isDecoded(level.size)) ?? all[all.length - 1];
  const pictures = new Map<number, Readable>([[all.length - 1, picture]]);
  const number = ++sources;

  async function pixels(src: string, signal: AbortSignal): Promise<Pixels> {
    const [level = 0, column = 0, row = 0] = src.split("/").slice(1).map(Number);
    const found = all[level];
    if (!found) throw new InfGenError("plan", `there is no level ${level}: look at minLevel and maxLevel`);
    const at = pictures.get(level) ?? picture.at(found.size);
    pictures.set(level, at);
    return at.read(tileBox(found, column, row, side), signal);
  }

  return {
    ...picture.size,
    tileSize: side,
    tileOverlap: 0,
    minLevel: smallest?.number ?? 0,
    maxLevel: all.length - 1,
    getTileUrl: (level, column, row) => `infgen${number}/${level}/${column}/${row}`,
    hasTransparency: () => false,
    downloadTileStart(job) {
      const stop = new AbortController();
      stops.set(job, stop);
      pixels(job.src, stop.signal)
        .then((found) => job.finish(drawn(found), null, "context2d"))
        .catch((error: unknown) => {
          const known = error instanceof InfGenError ? error : new InfGenError("decode", oneLine(error), error);
          job.fail(known.message, null);
          if (known.kind !== "cancelled") options.failed?.(known);
        });
    },
    downloadTileAbort(job) {
      stops.get(job)?.abort();
    },
  };
}

function drawn(pixels: Pixels): CanvasRenderingContext2D {
  const canvas = document.createElement("canvas");
  canvas.width = pixels.width;
  canvas.height = pixels.height;
  const context = canvas.getContext("2d", { alpha: false, willReadFrequently: true });
  if (!context)
    throw new InfGenError("decode", "the browser gives no canvas: close other pages, which may hold its memory");
  context.putImageData(new ImageData(pixels.data, pixels.width, pixels.height), 0, 0);
  return context;
}
