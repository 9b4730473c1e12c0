// LiteRT.js: LiteRT as WebAssembly with XNNPACK.
//
// Its class CompiledModel knows float32, int32 and uint8 only and refuses every file with int8 or int64 inputs or
// outputs, so this uses the bindings below it (`LiteRt.liteRtWasm`, declared in its types), which know all.

import { ARRAYS, RunnerError, nested, tensor } from "./values.mjs";
import { outputQuantization } from "./app/src/engines/tflite.mjs";

const MODULES = "./node_modules/@litertjs/core/";

// litert::ElementType by value, as LiteRT.js numbers them.
const TYPES = {
  1: "float32", 2: "int32", 3: "uint8", 4: "int64", 6: "bool", 7: "int16", 9: "int8", 10: "float16", 11: "float64",
  13: "uint64", 16: "uint32", 17: "uint16",
}; // prettier-ignore

export const DISTRIBUTIONS = ["@litertjs/core"];

/** Open the library; returns what loads a model's bytes. */
export async function open(job) {
  const said = listen(); // before the library keeps its own hold of the console
  const { loadLiteRt, supportsFeature } = await import(MODULES + "dist/index.js");
  const relaxed = await supportsFeature("relaxedSimd");
  const threaded = job.threads > 1 && relaxed && globalThis.crossOriginIsolated;
  // Its pool has a worker per processor; more threads than that would wait for workers that a busy page never starts.
  const threads = threaded ? Math.min(job.threads, navigator.hardwareConcurrency) : 1;
  const litert = await loadLiteRt(new URL(MODULES + "wasm/", import.meta.url).href, { threads: threaded });
  const wasm = litert.liteRtWasm;
  const environment = litert.getDefaultEnvironment().liteRtEnvironment;

  return async (bytes) => {
    const place = wasm._malloc(bytes.byteLength);
    wasm.HEAPU8.set(bytes, place);
    const model = wasm.loadModel(environment, place, bytes.byteLength);
    const options = { accelerator: "wasm", cpuOptions: { numThreads: threads } };
    const compiled = await wasm.compileModel(environment, model, options);
    const kernels = said.some((line) => line.includes("XNNPACK delegate")) ? "XNNPACK" : "reference kernels";
    const quantization = outputQuantization(bytes);
    const signatures = Array.from({ length: model.getNumSignatures() }, (_, at) => signatureOf(model, at));
    const several = signatures.length > 1;
    const orders = signatures.map((one) => (several ? byName(job, one) : inOrder(job, one)));

    /** The signature that a row runs in: of several, the one of its length. */
    const chosen = (row) => {
      if (!several) return 0;
      const tokens = Object.values(row)[0].length;
      const at = signatures.findIndex((one) => one.inputs.some(({ shape }) => shape.length === 2 && shape[1] === tokens));
      if (at < 0) throw new RunnerError("job", `the file has no signature for a row of ${tokens} tokens`);
      return at;
    };

    return {
      inputs: signatures[0].inputs,
      prepare: (row) => {
        const at = chosen(row);
        const buffers = orders[at].map((name, input) => {
          const { dtype, shape } = signatures[at].inputs[input];
          const found = tensor(job, row, name, dtype);
          if (JSON.stringify(found.shape) !== JSON.stringify(shape)) {
            throw new RunnerError("job", `input '${name}' is ${JSON.stringify(found.shape)}, the model wants ${JSON.stringify(shape)}`);
          }
          return filled(wasm, environment, model.getInputTensorType(at, input), found.data);
        });
        return { at, buffers };
      },
      call: async ({ at, buffers }) => {
        const outputs = await compiled.run(at, buffers);
        const values = read(wasm, outputs[0], signatures[at].output.dtype);
        for (const one of outputs) one.delete();
        return { at, values };
      },
      release: ({ buffers }) => buffers.forEach((one) => one.delete()),
      logits: ({ at, values }) => {
        const { dtype, shape } = signatures[at].output;
        if (dtype.startsWith("float")) return nested(values, shape);
        const { scale, zero } = quantization[at];
        return nested(Float32Array.from(values, (one) => Math.fround(Number(one) - zero) * Math.fround(scale)), shape);
      },
      observed: {
        backend: `${kernels}, wasm${relaxed ? "-relaxed-simd" : "-simd"}${threaded ? "-threaded" : ""}`,
        threads,
        signatures: signatures.length,
      },
    };
  };
}

/** Lines written to the console from now on: LiteRT says there, and nowhere else, that it made an XNNPACK delegate. */
function listen() {
  const said = [];
  for (const name of ["log", "info", "warn", "error", "debug"]) {
    const real = console[name];
    console[name] = (...given) => {
      said.push(given.join(" "));
      real.apply(console, given);
    };
  }
  return said;
}

/** Names, types and shapes of a signature's inputs and of its first output. */
function signatureOf(model, at) {
  const signature = model.getSignature(at);
  const names = signature.inputNames();
  const inputs = Array.from({ length: names.size() }, (_, n) => ({
    name: names.get(n),
    ...described(model.getInputTensorType(at, n)),
  }));
  const output = described(model.getOutputTensorType(at, 0));
  names.delete();
  signature.delete();
  return { inputs, output };
}

function described(type) {
  const layout = type.layout();
  const sizes = layout.dimensions();
  const shape = Array.from({ length: sizes.size() }, (_, n) => sizes.get(n));
  const dtype = TYPES[type.elementType().value];
  if (dtype === undefined) {
    throw new RunnerError("unavailable", `LiteRT's type ${type.elementType().value} cannot be read in a browser`);
  }
  sizes.delete();
  layout.delete();
  type.delete();
  return { dtype, shape };
}

/** The job's name of every input of the signature, where the file has one signature: by name, else by position. */
function inOrder(job, { inputs }) {
  const names = job.signature.map((one) => one.name);
  const found = inputs.map((input) => names.filter((name) => input.name.includes(name)));
  if (found.every((matches) => matches.length === 1) && new Set(found.flat()).size === inputs.length) return found.flat();
  if (inputs.length !== names.length) {
    throw new RunnerError("job", `the model has ${inputs.length} inputs, the job's signature ${names.length}`);
  }
  const sorted = inputs.map((input) => input.name).sort();
  return inputs.map((input) => names[sorted.indexOf(input.name)]);
}

/** The same where there are several: their inputs have the row's names. */
function byName(job, { inputs }) {
  const names = new Set(job.signature.map((one) => one.name));
  const unknown = inputs.find((input) => !names.has(input.name));
  if (unknown) throw new RunnerError("job", `the model wants an input '${unknown.name}' that the job's signature lacks`);
  return inputs.map((input) => input.name);
}

function filled(wasm, environment, type, data) {
  const buffer = wasm.LiteRtTensorBuffer.createManaged(environment, wasm.LiteRtTensorBufferType.HOST_MEMORY, type, data.byteLength);
  type.delete();
  const place = buffer.lock(wasm.LiteRtTensorBufferLockMode.WRITE);
  wasm.HEAPU8.set(new Uint8Array(data.buffer), place);
  buffer.unlock();
  return buffer;
}

function read(wasm, buffer, dtype) {
  const place = buffer.lock(wasm.LiteRtTensorBufferLockMode.READ);
  const bytes = wasm.HEAPU8.slice(place, place + buffer.packedSize());
  buffer.unlock();
  return new ARRAYS[dtype](bytes.buffer);
}
