// Decodes latents in a headless Chromium, for tests/integrations/test_web.py: node test/browser.mjs JOB.json
//
// The job names the browser, the bundle's folder, and an output folder. `cases` are latents that the library decodes,
// whose pixels are written as raw RGB. `page` is a latent that is dropped on the page, which shows and saves it.
import { readFileSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";

import { chromium } from "playwright-core";

import { serve } from "../serve.mjs";

const job = JSON.parse(readFileSync(process.argv[2], "utf8"));
const server = await serve({ model: job.model });
const browser = await chromium.launch({ executablePath: job.browser, args: ["--no-sandbox", ...(job.flags ?? [])] });
const report = { browser: browser.version(), cases: {} };
const TIMEOUT = 1000 * (job.timeout ?? 300);

/** Decode a case in the page's own thread. Gives the pixels of its region as base64. */
async function decode({
  content,
  name,
  space,
  normalisation,
  latentSize,
  size,
  region,
  backend,
  memory,
  threads = 1,
  model,
  stops,
}) {
  const library = await import("/library.js");
  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  try {
    const latent = await library.readLatent(new File([bytes(content)], name), { space, normalisation, latentSize });
    const from = model ? library.bundleInZip(bytes(model), "the zip") : "/model/";
    const wasmPaths = new URL("/", location.href).href;
    const decoder = await library.open(from, { space: latent.space, backend, memory, threads, wasmPaths });
    const picture = decoder.picture(latent, size);
    const stop = new AbortController();
    if (stops) setTimeout(() => stop.abort());
    const { data, width, height } = await picture.read(region, stop.signal);
    let text = "";
    for (let at = 0; at < data.length; at += 4) text += String.fromCharCode(data[at], data[at + 1], data[at + 2]);
    const { backend: used } = decoder;
    await decoder.close();
    return { pixels: btoa(text), width, height, backend: used.name, size: picture.size };
  } catch (error) {
    return { error: error.message, name: error.name, kind: error.kind };
  }
}

try {
  const page = await browser.newPage({ viewport: { width: 960, height: 640 }, acceptDownloads: true });
  page.setDefaultTimeout(TIMEOUT);
  page.on("pageerror", (error) => console.error("page:", error.message));
  page.on("console", (message) => message.type() === "error" && console.error("console:", message.text()));
  if (job.cases?.length) await page.goto(`${server.address}index.html?model=nowhere`);
  for (const { title, latent, bundle, ...options } of job.cases ?? []) {
    const content = readFileSync(latent).toString("base64");
    const model = bundle ? readFileSync(bundle).toString("base64") : undefined;
    const { pixels, ...found } = await page.evaluate(decode, { content, name: basename(latent), model, ...options });
    if (pixels) writeFileSync(join(job.out, `${title}.rgb`), Buffer.from(pixels, "base64"));
    report.cases[title] = found;
  }
  if (job.page) {
    const state = (text) => page.getByRole("status").getByText(text).waitFor();
    await page.goto(`${server.address}?backend=wasm&threads=1&size=${job.page.size}`);
    await state("Ready for latents");
    // A file that is no latent is refused in words, and the page goes on.
    await page.locator("#file").setInputFiles(job.page.wrong);
    report.refusal = await page.getByRole("alert").textContent();
    await page.locator("#file").setInputFiles(job.page.latent);
    await state("What is seen is complete.");
    report.model = await page.locator("#model").textContent();
    report.problem = await page.locator("#problem").textContent();
    if (job.page.screenshot) await page.screenshot({ path: job.page.screenshot });
    const saved = page.waitForEvent("download");
    await page.evaluate(() => delete window.showSaveFilePicker);
    await page.getByText("Save as PNG").click();
    await (await saved).saveAs(join(job.out, "saved.png"));
    await state("Saved.");
  }
} finally {
  await browser.close();
  server.stop();
}
writeFileSync(join(job.out, "report.json"), JSON.stringify(report));
