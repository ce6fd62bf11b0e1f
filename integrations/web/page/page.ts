/** The page: drop a latent, pan and zoom, save. The address may say `?model=URL&backend=wasm&threads=1&size=4x`. */

import OpenSeadragon from "openseadragon";

import {
  type BackendOptions,
  asLatent,
  connect,
  InfGenError,
  type RemoteModel,
  type RemotePicture,
  readArray,
  type Stored,
  tileSource,
} from "../src/index.js";
import { save } from "./saving.js";

/** Tiles may take minutes in WebAssembly, and OpenSeadragon gives up after half a minute unless it is told. */
const PATIENCE = 60 * 60 * 1000;

const DECODING = "Decoding what is seen.";

const find = <T extends HTMLElement>(id: string): T => document.getElementById(id) as T;
const file = find<HTMLInputElement>("file");
const space = find<HTMLSelectElement>("space");
const size = find<HTMLInputElement>("size");
const saveButton = find<HTMLButtonElement>("save");
const stopButton = find<HTMLButtonElement>("stop");

const address = new URL(location.href).searchParams;
const viewer = OpenSeadragon({
  element: find("view"),
  showNavigationControl: false,
  // The worker makes one tile at a time, and a second one is on its way. The others wait where their order can change.
  imageLoaderLimit: 2,
  timeout: PATIENCE,
  maxZoomPixelRatio: 8,
  minPixelRatio: 0.8,
  imageSmoothingEnabled: true,
});
const worker = new Worker(new URL("worker.js", location.href), { type: "module" });

let model: RemoteModel | undefined;
let opening = 0;
let picture: RemotePicture | undefined;
let shown: { array: Stored; name: string } | undefined;
let saving: AbortController | undefined;

function say(text: string): void {
  find("state").textContent = text;
}

function complain(error: unknown): void {
  const text = error instanceof Error ? error.message : String(error);
  const problem = find("problem");
  problem.hidden = text === "";
  problem.textContent = text;
}

/** Run something that a user asked for, and show its error. */
function attempt(action: () => Promise<void>): void {
  complain("");
  action().catch((error: unknown) => {
    if (!(error instanceof InfGenError && error.kind === "cancelled")) complain(error);
    say("");
  });
}

async function openModel(from: string | Uint8Array): Promise<void> {
  say("The model is being opened.");
  const backend = (address.get("backend") ?? "auto") as NonNullable<BackendOptions["backend"]>;
  const wasmPaths = new URL("./", location.href).href;
  const threads = address.has("threads") ? Number(address.get("threads")) : undefined;
  opening += 1;
  try {
    model = await connect(worker, from, { backend, threads, wasmPaths });
  } finally {
    opening -= 1;
  }
  space.length = 1;
  for (const name of model.spaces) space.add(new Option(name));
  say(`Ready for latents of ${model.spaces.join(", ")}.`);
  await show(); // of a latent that was dropped before, or that another model showed
}

async function openFile(chosen: File): Promise<void> {
  const content = new Uint8Array(await chosen.arrayBuffer());
  if (chosen.name.endsWith(".zip")) {
    await openModel(content);
    return;
  }
  shown = { array: readArray(content, chosen.name), name: chosen.name };
  await show();
}

/** Show the latent in its space and at the size that are chosen. */
async function show(): Promise<void> {
  if (!shown || (!model && opening)) return;
  if (!model) throw new InfGenError("bundle", "no model is open: drop the zip file of a bundle, or reload the page");
  saving?.abort();
  const latent = asLatent(shown.array, { space: space.value || undefined, spaces: model.spaces });
  say("The picture is being planned.");
  const next = await model.picture(latent, size.value || undefined);
  await picture?.close();
  picture = next;
  const { width, height } = next.size;
  find("hint").hidden = true;
  find("model").textContent =
    `${latent.space} latent of ${latent.cells.width}x${latent.cells.height} cells, ` +
    `${width}x${height} pixels, on ${next.backend.name}`;
  saveButton.disabled = false;
  say(DECODING);
  viewer.open({ tileSource: tileSource(next, { failed: complain }) });
}

async function savePicture(): Promise<void> {
  if (!picture || !shown) return;
  saving = new AbortController();
  stopButton.hidden = false;
  saveButton.disabled = true;
  try {
    const progress = (share: number) => say(`Saving: ${Math.floor(100 * share)} %.`);
    progress(0);
    await save(picture, `${shown.name.replace(/\.\w+$/, "")}.png`, { signal: saving.signal, progress });
    say("Saved.");
  } finally {
    saving = undefined;
    stopButton.hidden = true;
    saveButton.disabled = false;
  }
}

viewer.addHandler("fully-loaded-change", ({ fullyLoaded }) => {
  if (!saving) say(fullyLoaded ? "What is seen is complete." : DECODING);
});
file.addEventListener("change", () => {
  const chosen = file.files?.[0];
  if (chosen) attempt(() => openFile(chosen));
});
space.addEventListener("change", () => attempt(show));
size.addEventListener("change", () => attempt(show));
saveButton.addEventListener("click", () => attempt(savePicture));
stopButton.addEventListener("click", () => saving?.abort());
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("over");
});
document.addEventListener("dragleave", () => document.body.classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  const dropped = event.dataTransfer?.files[0];
  if (dropped) attempt(() => openFile(dropped));
});

size.value = address.get("size") ?? size.value;
attempt(() => openModel(address.get("model") ?? "model/"));
