// LiteRT.js: LiteRT as WebAssembly with XNNPACK.
//
// Its class CompiledModel refuses files with int8 or int64 inputs or outputs, so this uses the bindings below it
// (`LiteRt.liteRtWasm`, declared in its types), which know all.

import type { LiteRt } from "@litertjs/core";

import { BundleError } from "../errors.js";
import { type Engine, inWorker, isolated, type Job, type Output, type Row, runtimeFiles } from "./engine.js";
import { outputQuantization } from "./tflite.mjs";

type Wasm = LiteRt["liteRtWasm"];
type Model = ReturnType<Wasm["loadModel"]>;
type Buffer = InstanceType<Wasm["LiteRtTensorBuffer"]>;
type TensorType = ReturnType<Model["getInputTensorType"]>;

interface Tensor {
  name: string;
  type: number; // litert::ElementType
  shape: number[];
}

interface Signature {
  inputs: Tensor[];
  output: Tensor;
}

// By litert::ElementType, what a text model's inputs and outputs may be.
const READERS: Record<number, (buffer: ArrayBuffer) => ArrayLike<number>> = {
  1: (buffer) => new Float32Array(buffer),
  2: (buffer) => new Int32Array(buffer),
  3: (buffer) => new Uint8Array(buffer),
  9: (buffer) => new Int8Array(buffer),
};
const FLOAT32 = 1;
const WRITERS: Record<number, (values: number[]) => ArrayBuffer> = {
  2: (values) => Int32Array.from(values).buffer,
  4: (values) => BigInt64Array.from(values, BigInt).buffer,
};

/** Opens the model. */
export async function open(job: Job): Promise<Engine> {
  const { litert, threaded } = await library(job);
  const wasm = litert.liteRtWasm;
  const environment = litert.getDefaultEnvironment().liteRtEnvironment;
  const asked = job.options.threads ?? 1;
  const threads = threaded ? Math.min(asked, navigator.hardwareConcurrency) : 1;
  const place = wasm._malloc(job.model.byteLength);
  wasm.HEAPU8.set(job.model, place); // LiteRT reads the model there until it is closed
  const model = wasm.loadModel(environment, place, job.model.byteLength);
  const options = { accelerator: "wasm", cpuOptions: { numThreads: threads } } as Parameters<Wasm["compileModel"]>[2];
  const compiled = await wasm.compileModel(environment, model, options);
  const quantization = outputQuantization(job.model);
  const signatures = Array.from({ length: model.getNumSignatures() }, (_, at) => signatureOf(model, at));
  const orders = signatures.map((one) => names(job, one, signatures.length > 1));

  const run = async (row: Row): Promise<Output> => {
    const at = signatureFor(signatures, row);
    const { inputs, output } = signatures[at]!;
    const buffers = inputs.map((input, n) => written(wasm, environment, model.getInputTensorType(at, n), input, row[orders[at]![n]!]!));
    try {
      const outputs = await compiled.run(at, buffers);
      const values = read(wasm, outputs[0]!, output);
      for (const one of outputs) one.delete();
      const { scale, zero } = quantization[at]!;
      const dequantized = (one: number): number => Math.fround(Math.fround(one - zero) * Math.fround(scale));
      return { data: output.type === FLOAT32 ? values : Float32Array.from(values, dequantized), shape: output.shape.slice(1) };
    } finally {
      for (const one of buffers) one.delete();
    }
  };
  const close = async (): Promise<void> => {
    compiled.delete();
    model.delete();
    wasm._free(place);
  };
  try {
    await run(job.probe);
  } catch (error) {
    await close();
    throw error;
  }
  const gpu = job.options.accelerator === "webgpu" ? "LiteRT.js is used on WebAssembly alone" : null;
  const alone = asked > threads ? (inWorker() ? "LiteRT.js has one thread in a worker" : "threads need a cross-origin isolated page") : null;
  return {
    runtime: {
      name: "@litertjs/core",
      version: null,
      accelerator: "wasm",
      threads,
      fallback: [gpu, alone].filter((one) => one !== null).join("; ") || null,
      crossOriginIsolated: isolated(),
      where: inWorker() ? "worker" : "page",
    },
    run,
    close,
  };
}

let opening: Promise<{ litert: LiteRt; threaded: boolean }> | null = null;

/** The library is there once for a page; the first model says whether it has threads. */
function library(job: Job): Promise<{ litert: LiteRt; threaded: boolean }> {
  opening ??= opened(job).catch((error: unknown) => {
    opening = null;
    throw error;
  });
  return opening;
}

async function opened(job: Job): Promise<{ litert: LiteRt; threaded: boolean }> {
  const { loadLiteRt, supportsFeature } = await import("@litertjs/core");
  const folder = runtimeFiles(job.options);
  const relaxed = await supportsFeature("relaxedSimd");
  if (!inWorker()) {
    const threaded = (job.options.threads ?? 1) > 1 && relaxed && isolated();
    return { litert: await loadLiteRt(folder, { threads: threaded }), threaded };
  }
  const name = relaxed ? "litert_wasm_internal.js" : "litert_wasm_compat_internal.js";
  await inModule(folder, name);
  return { litert: await loadLiteRt(folder + name), threaded: false };
}

/** LiteRT.js runs its script by `importScripts`, which throws in a module worker: so it is run here, ahead of it. */
async function inModule(folder: string, name: string): Promise<void> {
  const response = await fetch(folder + name);
  if (!response.ok) throw new BundleError(`${folder}${name}: status ${response.status}; say in runtimeFiles where the runtime's files lie`);
  const script = `${await response.text()}\nglobalThis.ModuleFactory = ModuleFactory;`;
  const url = URL.createObjectURL(new Blob([script], { type: "text/javascript" }));
  try {
    await import(/* @vite-ignore */ /* webpackIgnore: true */ url);
  } finally {
    URL.revokeObjectURL(url);
  }
  Object.assign(globalThis, { Module: { locateFile: (file: string) => folder + file } });
  Object.defineProperty(globalThis, "importScripts", { value: () => undefined, configurable: true });
}

function signatureOf(model: Model, at: number): Signature {
  const signature = model.getSignature(at);
  const list = signature.inputNames();
  const inputs = Array.from({ length: list.size() }, (_, n) => described(list.get(n), model.getInputTensorType(at, n)));
  list.delete();
  signature.delete();
  return { inputs, output: described("output", model.getOutputTensorType(at, 0)) };
}

function described(name: string, type: TensorType): Tensor {
  const layout = type.layout();
  const sizes = layout.dimensions();
  const shape = Array.from({ length: sizes.size() }, (_, n): number => sizes.get(n));
  const found = { name: String(name), type: type.elementType().value, shape };
  for (const one of [sizes, layout, type]) one.delete();
  return found;
}

/** The row's name of every input: by name, else, where there is one signature, by position. */
function names(job: Job, { inputs }: Signature, several: boolean): string[] {
  const known = job.settings.inputs.map((one) => one.name);
  const found = inputs.map((input) => known.filter((name) => (several ? input.name === name : input.name.includes(name))));
  if (found.every((matches) => matches.length === 1) && new Set(found.flat()).size === inputs.length) return found.flat();
  if (several || inputs.length !== known.length) {
    throw new BundleError(`the model's inputs (${inputs.map((one) => one.name).join(", ")}) are not those of app.json (${known.join(", ")})`);
  }
  const sorted = inputs.map((input) => input.name).sort();
  return inputs.map((input) => known[sorted.indexOf(input.name)]!);
}

/** The signature that a row runs in: of several, the one of its length. */
function signatureFor(signatures: Signature[], row: Row): number {
  const length = Object.values(row)[0]!.length;
  const at = signatures.findIndex((one) => one.inputs[0]!.shape.at(-1) === length);
  if (at < 0) throw new BundleError(`the model has no signature for ${length} tokens`);
  return at;
}

function written(wasm: Wasm, environment: Parameters<Wasm["loadModel"]>[0], type: TensorType, input: Tensor, values: number[]): Buffer {
  const write = WRITERS[input.type];
  if (!write) throw new BundleError(`the model's input ${input.name} is of LiteRT's type ${input.type}, which no text is`);
  const data = write(values);
  const buffer = wasm.LiteRtTensorBuffer.createManaged(environment, wasm.LiteRtTensorBufferType.HOST_MEMORY, type, data.byteLength);
  type.delete();
  const place = buffer.lock(wasm.LiteRtTensorBufferLockMode.WRITE);
  wasm.HEAPU8.set(new Uint8Array(data), place);
  buffer.unlock();
  return buffer;
}

function read(wasm: Wasm, buffer: Buffer, output: Tensor): ArrayLike<number> {
  const reader = READERS[output.type];
  if (!reader) throw new BundleError(`the model's output is of LiteRT's type ${output.type}, which is not read here`);
  const place = buffer.lock(wasm.LiteRtTensorBufferLockMode.READ);
  const bytes = wasm.HEAPU8.slice(place, place + buffer.packedSize());
  buffer.unlock();
  return reader(bytes.buffer as ArrayBuffer);
}
