/** Writes pictures as PNG, band by band, so that memory does not grow with the picture. */

import { checkGoesOn } from "./errors.js";
import type { Size } from "./geometry/box.js";
import type { Readable } from "./picture.js";

/** How a picture is saved. */
export interface SaveOptions {
  /** Called with the share of the picture that is done, from 0 to 1. */
  readonly progress?: ((share: number) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
}

/**
 * A picture as the bytes of a PNG file. Each band is decoded when the reader of the stream asks for more.
 *
 * The stream fails with an `InfGenError` if decoding fails or the work is stopped.
 */
export function pngStream(picture: Readable, options: SaveOptions = {}): ReadableStream<Uint8Array<ArrayBuffer>> {
  const chunks = pngChunks(picture, options);
  return new ReadableStream({
    async pull(controller) {
      const { value, done } = await chunks.next();
      if (done) controller.close();
      else controller.enqueue(value);
    },
    async cancel() {
      await chunks.return(undefined);
    },
  });
}

/** A picture as a PNG file. */
export async function toPng(picture: Readable, options: SaveOptions = {}): Promise<Blob> {
  const parts: Uint8Array<ArrayBuffer>[] = [];
  for await (const chunk of pngChunks(picture, options)) parts.push(chunk);
  return new Blob(parts, { type: "image/png" });
}

async function* pngChunks(picture: Readable, options: SaveOptions): AsyncGenerator<Uint8Array<ArrayBuffer>, void> {
  yield new Uint8Array([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]);
  yield chunk("IHDR", header(picture.size));
  // sRGB with perceptual intent, as Python's PNG files say too.
  yield chunk("sRGB", new Uint8Array([0]));
  const compressed = rowsOf(picture, options).pipeThrough(new CompressionStream("deflate"));
  const reader = compressed.getReader();
  try {
    for (let part = await reader.read(); !part.done; part = await reader.read()) yield chunk("IDAT", part.value);
  } finally {
    await reader.cancel().catch(() => undefined);
  }
  yield chunk("IEND", new Uint8Array(0));
}

/** The rows of a picture, each with its filter, in bands as high as the picture's tiles. */
function rowsOf(picture: Readable, { signal, progress }: SaveOptions): ReadableStream<Uint8Array<ArrayBuffer>> {
  const { width, height } = picture.size;
  let above = new Uint8Array(3 * width);
  let y = 0;
  return new ReadableStream(
    {
      async pull(controller) {
        checkGoesOn(signal);
        const rows = Math.min(picture.tile, height - y);
        const { data } = await picture.read({ x: 0, y, width, height: rows }, signal);
        const filtered = new Uint8Array(rows * (3 * width + 1));
        for (let row = 0; row < rows; row++) {
          const line = withoutAlpha(data.subarray(4 * row * width, 4 * (row + 1) * width));
          filter(line, above, filtered.subarray(row * (3 * width + 1)));
          above = line;
        }
        y += rows;
        controller.enqueue(filtered);
        progress?.(y / height);
        if (y === height) controller.close();
      },
    },
    { highWaterMark: 0 },
  );
}

function withoutAlpha(pixels: Uint8ClampedArray): Uint8Array<ArrayBuffer> {
  const line = new Uint8Array((3 * pixels.length) / 4);
  for (let from = 0, to = 0; from < pixels.length; from += 4, to += 3) {
    line[to] = pixels[from] as number;
    line[to + 1] = pixels[from + 1] as number;
    line[to + 2] = pixels[from + 2] as number;
  }
  return line;
}

/** Write a row with the filter Paeth, which suits photographs. */
function filter(line: Uint8Array, above: Uint8Array, to: Uint8Array): void {
  to[0] = 4;
  for (let index = 0; index < line.length; index++) {
    const left = index < 3 ? 0 : (line[index - 3] as number);
    const corner = index < 3 ? 0 : (above[index - 3] as number);
    const up = above[index] as number;
    const guess = left + up - corner;
    const [a, b, c] = [Math.abs(guess - left), Math.abs(guess - up), Math.abs(guess - corner)];
    to[index + 1] = (line[index] as number) - (a <= b && a <= c ? left : b <= c ? up : corner);
  }
}

function header({ width, height }: Size): Uint8Array {
  const content = new Uint8Array(13);
  const view = new DataView(content.buffer);
  view.setUint32(0, width);
  view.setUint32(4, height);
  content.set([8, 2, 0, 0, 0], 8); // 8 bits, RGB, and no choices of method
  return content;
}

function chunk(name: string, content: Uint8Array): Uint8Array<ArrayBuffer> {
  const result = new Uint8Array(12 + content.length);
  const view = new DataView(result.buffer);
  view.setUint32(0, content.length);
  result.set(new TextEncoder().encode(name), 4);
  result.set(content, 8);
  view.setUint32(8 + content.length, crc(result.subarray(4, 8 + content.length)));
  return result;
}

const TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let value = byte;
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? 0xedb88320 ^ (value >>> 1) : value >>> 1;
  return value;
});

function crc(content: Uint8Array): number {
  let value = 0xffffffff;
  for (const byte of content) value = (TABLE[(value ^ byte) & 0xff] as number) ^ (value >>> 8);
  return (value ^ 0xffffffff) >>> 0;
}
