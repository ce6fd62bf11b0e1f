/** Saves a picture: straight to a file where the browser can, and otherwise as a download. */

import { InfGenError, oneLine, pngStream, type Readable, type SaveOptions, toPng } from "../src/index.js";

/** The part of the File System Access API that is used here. TypeScript's libraries do not have it yet. */
interface Picker {
  showSaveFilePicker?(options: { suggestedName: string }): Promise<FileSystemFileHandle>;
}

/**
 * Save a picture as PNG. A file that is written directly appears only once it is complete.
 *
 * @throws {InfGenError} if decoding or writing failed, or the work was stopped. Nothing is left behind then.
 */
export async function save(picture: Readable, name: string, options: SaveOptions): Promise<void> {
  const picker = (window as Picker).showSaveFilePicker;
  if (!picker) {
    download(await toPng(picture, options), name);
    return;
  }
  let handle: FileSystemFileHandle;
  try {
    handle = await picker.call(window, { suggestedName: name });
  } catch (error) {
    throw new InfGenError("cancelled", "no file was chosen", error);
  }
  const file = await handle.createWritable();
  try {
    await pngStream(picture, options).pipeTo(file);
  } catch (error) {
    if (error instanceof InfGenError) throw error;
    throw new InfGenError("output", `${name} cannot be written: ${oneLine(error)}; look at the free space`, error);
  }
}

function download(content: Blob, name: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content);
  link.download = name;
  link.click();
  // The download has begun once the event loop gets its turn, and needs the address a little longer.
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
