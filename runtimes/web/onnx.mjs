// ONNX Runtime Web: its CPU provider as WebAssembly (SIMD; threads where the page is cross-origin isolated).

import { nested, tensor } from "./values.mjs";

const DIST = "./node_modules/onnxruntime-web/dist/";

// A model of one Identity. ORT Web opens its WebAssembly with the first session: with this one, not with the model.
const IDENTITY =
  "CAg6NwoQCgF4EgF5IghJZGVudGl0eRIBZ1oPCgF4EgoKCAgBEgQKAggBYg8KAXkSCgoICAESBAoCCAFCBAoAEA0=";

export const DISTRIBUTIONS = ["onnxruntime-web"];

/** Open the library; returns what loads a model's bytes. */
export async function open(job) {
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

  return async (bytes) => {
    const session = await ort.InferenceSession.create(bytes, {
      executionProviders: ["wasm"],
      graphOptimizationLevel: "all",
    });
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
      observed: {
        backend: `CPUExecutionProvider, wasm-simd${threads > 1 ? "-threaded" : ""}`,
        threads,
        graph_optimization: "all",
      },
    };
  };
}
