// Builds the library (dist/index.js, dist/worker.js) and the page (dist/page). `tsc` writes the types.
import { cpSync, mkdirSync, rmSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const dist = join(here, "dist");
const page = join(dist, "page");
rmSync(dist, { recursive: true, force: true });
mkdirSync(page, { recursive: true });

const common = {
  absWorkingDir: here,
  bundle: true,
  format: "esm",
  target: "es2022",
  logLevel: "warning",
  sourcemap: true,
};

// The bundler of the app that uses the library finds onnxruntime-web and fflate.
await build({
  ...common,
  entryPoints: { index: "src/index.ts", worker: "src/worker/worker.ts" },
  outdir: dist,
  packages: "external",
});

await build({
  ...common,
  entryPoints: { page: "page/page.ts", worker: "src/worker/worker.ts", library: "src/index.ts" },
  outdir: page,
  splitting: true,
  minify: true,
  // The files of WebAssembly stay beside the scripts, where threads find them.
  conditions: ["onnxruntime-web-use-extern-wasm"],
  define: { "process.env.NODE_ENV": '"production"' },
});

cpSync(join(here, "page", "index.html"), join(page, "index.html"));
const runtime = dirname(fileURLToPath(import.meta.resolve("onnxruntime-web/wasm")));
for (const kind of ["", ".asyncify"]) {
  for (const end of ["mjs", "wasm"]) {
    const name = `ort-wasm-simd-threaded${kind}.${end}`;
    cpSync(join(runtime, name), join(page, name));
  }
}
