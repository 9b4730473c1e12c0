// Makes dist/: the library and its worker as modules that need no other package, and the runtime's own files beside them.

import { copyFile, mkdir, readFile, rm } from "node:fs/promises";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const folderOf = (name) => dirname(fileURLToPath(import.meta.resolve(name)));

// By target: where the runtime's package keeps its files, and those that the library asks for.
const RUNTIMES = {
  onnx: [folderOf("onnxruntime-web/wasm"), ["ort-wasm-simd-threaded", "ort-wasm-simd-threaded.asyncify"], [".mjs", ".wasm"]],
  litert: [join(folderOf("@litertjs/core"), "..", "wasm"), ["litert_wasm", "litert_wasm_compat", "litert_wasm_threaded"], ["_internal.js", "_internal.wasm"]],
}; // prettier-ignore

/** The target of the bundle that this lies in; all of them where it lies in none. */
async function targets() {
  try {
    return [JSON.parse(await readFile(join(here, "app.json"), "utf8")).target];
  } catch {
    return Object.keys(RUNTIMES);
  }
}

const dist = join(here, "dist");
await rm(dist, { recursive: true, force: true });
await build({
  absWorkingDir: here,
  entryPoints: ["src/index.ts", "src/worker.ts"],
  outdir: "dist",
  bundle: true,
  splitting: true,
  format: "esm",
  target: "es2022",
  minify: true,
  sourcemap: true,
  legalComments: "linked",
  conditions: ["onnxruntime-web-use-extern-wasm"], // its WebAssembly is a file, not a string
  logLevel: "warning",
});
await mkdir(join(dist, "runtime"), { recursive: true });
for (const target of await targets()) {
  const [folder, names, endings] = RUNTIMES[target];
  for (const name of names) {
    for (const ending of endings) await copyFile(join(folder, name + ending), join(dist, "runtime", name + ending));
  }
}
