// What transformers.js answers from a folder on this machine alone, in Node and in a page.
import { env, pipeline } from "@huggingface/transformers";

env.allowLocalModels = true; // which a page does not do by itself
env.allowRemoteModels = false;

export async function answers({ folder, name, kind, options, asked, texts, wasm }) {
  env.localModelPath = folder;
  if (wasm) env.backends.onnx.wasm.wasmPaths = wasm; // instead of a CDN
  const model = await pipeline(kind, name, options);
  const found = [];
  for (const text of texts) {
    const one = await model(text, asked);
    found.push(one.tolist ? one.tolist() : one);
  }
  return found;
}
