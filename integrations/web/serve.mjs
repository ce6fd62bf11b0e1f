// Serves the page and a model on this machine only: node serve.mjs [--model FOLDER] [--port NUMBER]
import { createReadStream, existsSync, statSync } from "node:fs";
import { createServer } from "node:http";
import { dirname, extname, join, normalize, resolve, sep } from "node:path";
import { pipeline } from "node:stream";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const here = dirname(fileURLToPath(import.meta.url));
const TYPES = {
  ".html": "text/html; charset=utf-8",
  ".js": "text/javascript",
  ".mjs": "text/javascript",
  ".json": "application/json",
  ".wasm": "application/wasm",
};

/** The decoded path of a request, or undefined if it is malformed. */
function pathOf(url) {
  try {
    return decodeURIComponent(new URL(url, "http://localhost").pathname);
  } catch {
    return undefined;
  }
}

/** Start a server for the page at `/` and a bundle's folder at `/model/`. Returns its address and what stops it. */
export async function serve({ model = join(here, "..", "..", "infgen_rt", "model"), port = 0 } = {}) {
  const page = join(here, "dist", "page");
  if (!existsSync(page)) throw new Error("the page is not built: run `npm run build` first");
  const server = createServer((request, response) => {
    const path = pathOf(request.url ?? "/");
    if (path === undefined) {
      response.writeHead(400).end("bad request");
      return;
    }
    const [root, name] = path.startsWith("/model/")
      ? [resolve(model), path.slice(7)]
      : [page, path.slice(1) || "index.html"];
    const file = join(root, normalize(name));
    // With these, the page is cross-origin isolated, which threads of WebAssembly need.
    response.setHeader("Cross-Origin-Opener-Policy", "same-origin");
    response.setHeader("Cross-Origin-Embedder-Policy", "require-corp");
    response.setHeader("Cache-Control", "no-cache");
    if (!file.startsWith(root + sep) || !existsSync(file) || !statSync(file).isFile()) {
      response.writeHead(404).end("not found");
      return;
    }
    response.setHeader("Content-Type", TYPES[extname(file)] ?? "application/octet-stream");
    // Closes the file if the browser leaves, and the connection if the file cannot be read.
    pipeline(createReadStream(file), response, () => undefined);
  });
  await new Promise((done, failed) => server.once("error", failed).listen(port, "127.0.0.1", done));
  return { address: `http://127.0.0.1:${server.address().port}/`, stop: () => server.close() };
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { values } = parseArgs({ options: { model: { type: "string" }, port: { type: "string", default: "8321" } } });
  const { address } = await serve({ ...(values.model ? { model: values.model } : {}), port: Number(values.port) });
  console.log(`The page is at ${address} (only on this machine). Press Ctrl+C to stop.`);
}
