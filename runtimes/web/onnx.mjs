// ONNX Runtime Web: its CPU provider as WebAssembly (SIMD; threads where the page is cross-origin isolated).

import { nested, tensor } from "./values.mjs";

const DIST = "./node_modules/onnxruntime-web/dist/";

// A model of one Identity. ORT Web opens its WebAssembly with the first session: with this one, not with the model.
const IDENTITY =
  "CAg6NwoQCgF4EgF5IghJZGVudGl0eRIBZ1oPCgF4EgoKCAgBEgQKAggBYg8KAXkSCgoICAESBAoCCAFCBAoAEA0=";

export const DISTRIBUTIONS = ["onnxruntime-web"];

/** Open the library: itself, what makes a session of a model's bytes, and what is worth telling of it. */
export async function library(job) {
  const ort = await import(DIST + "ort.wasm.bundle.min.mjs");
  ort.env.wasm.wasmPaths = new URL(DIST, import.meta.url).href;
  ort.env.wasm.numThreads = job.threads;
  ort.env.logLevel = "error";
  const first = await ort.InferenceSession.create(
    Uint8Array.from(atob(IDENTITY), (one) => one.charCodeAt(0)),
    { executionProviders: ["wasm"] },
  );
  await first.release();
  const threads = ort.env.wasm.numThreads; // set to 1 by ORT Web where there are none

  return {
    ort,
    create: (bytes, more = {}) =>
      ort.InferenceSession.create(bytes, { executionProviders: ["wasm"], graphOptimizationLevel: "all", ...more }),
    observed: {
      backend: `CPUExecutionProvider, wasm-simd${threads > 1 ? "-threaded" : ""}`,
      threads,
      graph_optimization: "all",
    },
  };
}

/** Open the library; returns what loads a model's bytes. */
export async function open(job) {
  const { ort, create, observed } = await library(job);

  return async (bytes) => {
    const session = await create(bytes);
    const inputs = session.inputMetadata.map((one) => ({
      name: one.name,
      dtype: one.type,
      shape: one.shape.map((size) => (typeof size === "number" ? size : -1)),
    }));
    return {
      inputs,
      prepare: (row) => {
        const feeds = {};
        for (const { name, dtype } of inputs) {
          const { data, shape } = tensor(job, row, name, dtype);
          feeds[name] = new ort.Tensor(dtype, data, shape);
        }
        return feeds;
      },
      call: (feeds) => session.run(feeds),
      release: () => {},
      logits: (outputs) => {
        const { data, dims } = outputs[session.outputNames[0]];
        return nested(data, dims);
      },
      observed,
    };
  };
}
