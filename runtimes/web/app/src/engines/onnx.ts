// ONNX Runtime Web: its CPU kernels as WebAssembly, or WebGPU.

import type * as Ort from "onnxruntime-web";

import { told } from "../errors.js";
import { type Engine, inWorker, isolated, type Job, type Output, type Row, runtimeFiles } from "./engine.js";

/** Opens the model on what was asked for, or on WebAssembly. */
export async function open(job: Job): Promise<Engine> {
  let fallback: string | null = null;
  if (job.options.accelerator === "webgpu") {
    fallback = await lacking();
    if (fallback === null) {
      try {
        return await opened(await import("onnxruntime-web/webgpu"), "webgpu", job, null);
      } catch (error) {
        fallback = `the model does not run on WebGPU (${told(error)})`;
      }
    }
  }
  return opened(await import("onnxruntime-web/wasm"), "wasm", job, fallback);
}

/** Why there is no WebGPU; null where there is. */
async function lacking(): Promise<string | null> {
  const { gpu } = navigator as unknown as { gpu?: { requestAdapter(): Promise<unknown> } };
  if (!gpu) return "this browser has no WebGPU here";
  const adapter = await gpu.requestAdapter().catch(() => null);
  return adapter ? null : "WebGPU finds no adapter";
}

async function opened(ort: typeof Ort, accelerator: "wasm" | "webgpu", job: Job, fallback: string | null): Promise<Engine> {
  ort.env.wasm.wasmPaths = runtimeFiles(job.options);
  const asked = job.options.threads ?? 1;
  ort.env.wasm.numThreads = isolated() ? asked : 1;
  ort.env.logLevel = "error";
  const session = await ort.InferenceSession.create(job.model, {
    executionProviders: [accelerator],
    graphOptimizationLevel: "all",
  });
  const run = async (row: Row): Promise<Output> => {
    const feeds: Record<string, Ort.Tensor> = {};
    for (const { name, dtype } of job.settings.inputs) {
      const values = row[name]!;
      const data = dtype === "int64" ? BigInt64Array.from(values, BigInt) : Int32Array.from(values);
      feeds[name] = new ort.Tensor(dtype as "int64", data as BigInt64Array, [1, values.length]);
    }
    const found = (await session.run(feeds))[session.outputNames[0]!]!;
    const output = { data: (await found.getData()) as Float32Array, shape: found.dims.slice(1) };
    for (const one of Object.values(feeds)) one.dispose();
    return output;
  };
  const close = (): Promise<void> => session.release();
  try {
    await run(job.probe);
  } catch (error) {
    await close();
    throw error;
  }
  const threads = ort.env.wasm.numThreads ?? 1;
  const alone = asked > threads ? "threads need a cross-origin isolated page" : null;
  return {
    runtime: {
      name: "onnxruntime-web",
      version: ort.env.versions.web ?? null,
      accelerator,
      threads,
      fallback: [fallback, alone].filter((one) => one !== null).join("; ") || null,
      crossOriginIsolated: isolated(),
      where: inWorker() ? "worker" : "page",
    },
    run,
    close,
  };
}
