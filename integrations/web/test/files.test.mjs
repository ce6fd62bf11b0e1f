// What is refused without decoding anything, in Node: npm test
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { zipSync } from "fflate";

import {
  asLatent,
  Bundle,
  bundleInZip,
  connect,
  InfGenError,
  readArray,
  SPACES,
  spacesOf,
} from "../dist/page/library.js";

const text = (content) => new TextEncoder().encode(content);

/** A .npy file of zeros. */
function npy(shape, type = "<f4", bytes = 4) {
  const header = `{'descr': '${type}', 'fortran_order': False, 'shape': (${shape.join(", ")},), }\n`;
  const count = shape.reduce((whole, side) => whole * side, 1);
  const content = new Uint8Array(10 + header.length + bytes * count);
  content.set([0x93, ...text("NUMPY"), 1, 0, header.length, 0, ...text(header)]);
  return content;
}

/** A .safetensors file with this header and so many bytes of numbers. */
function safetensors(header, bytes) {
  const described = text(JSON.stringify(header));
  const content = new Uint8Array(8 + described.length + bytes);
  new DataView(content.buffer).setBigUint64(0, BigInt(described.length), true);
  content.set(described, 8);
  return content;
}

function refused(action, kind, words) {
  assert.throws(action, (error) => {
    assert.ok(error instanceof InfGenError, String(error));
    assert.equal(error.kind, kind);
    assert.match(error.message, words);
    assert.ok(!error.message.includes("\n"));
    return true;
  });
}

test("files that are no latents are refused with what to do", () => {
  const cases = [
    [new Uint8Array(0), /is empty: save the latent again/],
    [text("not a latent, but some text that is longer"), /is damaged or not a .npy/],
    [Uint8Array.of(0x89, 0x50, 0x4e, 0x47), /is a picture, and not a latent/],
    [npy([32, 4, 4]).slice(0, -1), /is truncated or damaged: 2047 bytes of numbers, expected 2048/],
    [npy([2, 2], "|O", 8), /Python objects \(pickle\), which are never loaded/],
    [npy([2, 2], "<i8", 8), /numbers of type '<i8'/],
    [zipSync({ "archive/data.pkl": text("x") }), /PyTorch pickle/],
    [zipSync({ "manifest.json": text("{}") }), /a model bundle/],
    [zipSync({ "a.npy": npy([1]), "b.npy": npy([1]) }), /holds a, b; say which to read by its name/],
    [safetensors({ x: { dtype: "I64", shape: [1], data_offsets: [0, 8] } }, 8), /of I64, and a latent is/],
    [safetensors({ x: { dtype: "F32", shape: [4], data_offsets: [0, 16] } }, 8), /ends at byte 16 of 8/],
    [safetensors({ x: { dtype: "F32", shape: [-1], data_offsets: [0, 4] } }, 4), /is damaged/],
  ];
  for (const [content, words] of cases) refused(() => readArray(content, "latent.bin"), "latent", words);
});

test("a .npy file has no names", () => {
  refused(() => readArray(npy([32, 4, 4]), "latent.npy", "latent"), "latent", /has no name, and is not 'latent'/);
});

test("types of numbers are widened", () => {
  const header = (dtype, bytes) => ({ latent: { dtype, shape: [1], data_offsets: [0, bytes] } });
  const read = (dtype, bytes) => {
    const content = safetensors(header(dtype, bytes.length), bytes.length);
    content.set(bytes, content.length - bytes.length);
    return readArray(content).data[0];
  };
  assert.equal(read("F16", [0x00, 0xc2]), -3);
  assert.equal(read("BF16", [0x40, 0xc0]), -3);
  assert.equal(read("F64", [0, 0, 0, 0, 0, 0, 0x08, 0xc0]), -3);
});

test("shapes and numbers that are not those of a latent are refused", () => {
  const array = (shape, value = 0) => ({ data: new Float32Array(shape.reduce((a, b) => a * b, 1)).fill(value), shape });
  refused(() => asLatent(array([4, 8, 8])), "latent", /may be of sd15 or sdxl: say which it is/);
  refused(() => asLatent(array([5, 8, 8])), "latent", /is not a latent's/);
  refused(
    () => asLatent(array([4, 8, 8]), { space: "flux2" }),
    "latent",
    /is not that of flux2 latents: expected \[32, h, w\]/,
  );
  refused(() => asLatent(array([2, 32, 8, 8]), { space: "flux2" }), "latent", /is a batch of 2/);
  refused(() => asLatent(array([16, 128]), { space: "flux2" }), "latent", /16 packed tokens: say the pipeline's width/);
  refused(() => asLatent(array([32, 8, 8], Number.NaN)), "latent", /2048 of 2048 numbers are NaN or infinite/);
  refused(() => asLatent(array([32, 8, 8], 1e5)), "latent", /reach 1.00e\+5/);
  refused(() => asLatent(array([4, 8, 8]), { space: "sdxxl" }), "latent", /latent space 'sdxxl' is unknown/);
  assert.deepEqual(
    spacesOf([1, 16, 8, 8]).map((each) => each.name),
    ["sd3", "flux1"],
  );
  assert.deepEqual(asLatent(array([1, 16, 128]), { space: "flux2", latentSize: { width: 64, height: 64 } }).cells, {
    width: 8,
    height: 8,
  });
});

test("bundles that cannot be run are refused", async () => {
  const opened = (manifest) =>
    Bundle.open(bundleInZip(zipSync({ "manifest.json": text(JSON.stringify(manifest)) }), "m.zip"));
  const cases = [
    [opened([]), /is not that of a bundle/],
    [opened({ format: 7 }), /has format 7, and this version reads 6: upgrade/],
    [opened({ format: 5 }), /has format 5, and this version reads 6: export the model again/],
    [opened({ format: 6 }), /'files' is missing/],
    [opened({ format: 6, files: { "../x": { sha256: "", bytes: 1 } } }), /does not stay inside the bundle/],
    [Bundle.open(bundleInZip(text("no zip"), "m.zip")), /m.zip is not a bundle's zip/],
    [Bundle.open(bundleInZip(zipSync({ other: text("") }), "m.zip")), /has no manifest.json at its top/],
  ];
  for (const [promise, words] of cases) {
    await assert.rejects(
      promise,
      (error) => error instanceof InfGenError && error.kind === "bundle" && words.test(error.message),
    );
  }
});

/** The worker's script, as it would run in a browser's Worker. Node has no such workers. */
async function inWorker() {
  const worker = new EventTarget();
  const self = new EventTarget();
  const answer = (data) => worker.dispatchEvent(Object.assign(new Event("message"), { data }));
  globalThis.self = Object.assign(self, { postMessage: (data) => setTimeout(() => answer(data)) });
  await import("../dist/page/worker.js");
  worker.postMessage = (data) => self.dispatchEvent(Object.assign(new Event("message"), { data }));
  return worker;
}

test("a worker has the model that was asked for last, and keeps the answers of several apart", async () => {
  const manifest = JSON.parse(readFileSync(new URL("../../../infgen_rt/model/manifest.json", import.meta.url)));
  const zips = [0, 1].map((index) => {
    const one = JSON.stringify({ ...manifest, models: [manifest.models[index]] });
    return zipSync({ "manifest.json": text(one) });
  });
  const worker = await inWorker();
  const [first, second] = await Promise.all(zips.map((zip) => connect(worker, zip)));
  const spaces = manifest.models.slice(0, 2).map((each) => each.latent_space);
  assert.deepEqual([first.spaces, second.spaces], [[spaces[0]], [spaces[1]]]);
  const latent = asLatent(readArray(npy([SPACES.get(spaces[0]).channels, 4, 4])), { space: spaces[0] });
  await assert.rejects(first.picture(latent), /another model was opened in this worker/);
  await assert.rejects(second.picture(latent), new RegExp(`has no model for ${spaces[0]} latents`));
});
