// The edgekd runner in a browser: opens one model on one runtime, and times it. See runtimes/README.md for the wire.
//
// The host calls `edgekd.answer(line)` for the job and, in the phases `time` and `write`, for every request; it answers
// `{line, code}`: a document, and the exit code once the runner has ended (null while it stays). The runtime and the timed
// loop run on the page, not in a worker: LiteRT.js loads its WebAssembly by a <script>, which a module worker has not.
//
// Clock:    performance.now(). Chromium rounds it to 5 us where the page is cross-origin isolated and to 100 us where not
//           (W3C High Resolution Time); `observed.clock_resolution_ns` is its smallest step here. A sample may be 0.
// Load:     from the file's bytes in memory to a model; `observed.fetch_ns` is how long the bytes took to arrive.
// Memory:   pages of 4 KiB of this page's WebAssembly memories that are not all zero. Such a memory starts as zeros and is
//           never given back, so this counts what was ever written: a peak, which cannot be reset. Not in it: pages that
//           hold nothing but zeros, what the model's load found freed by the library's, and all of JavaScript's own
//           (the file's bytes too). `observed.wasm_memory_bytes` is the whole size of these memories.
// Unknown:  processor time and the machine's load are hidden from a page: null.

import { RunnerError } from "./values.mjs";
import * as litert from "./litert.mjs";
import * as onnx from "./onnx.mjs";
import { WRITERS } from "./writers.mjs";

const SCHEMA = "edgekd/runner/1";
const VERSION = "1";
const RUNTIMES = { onnx, litert };
const DTYPES = ["int64", "int32", "float32"];

// --- memory: every WebAssembly.Memory of this page, made here or exported by a module ---

const memories = new Set();

function watchMemories() {
  const made = WebAssembly.Memory;
  WebAssembly.Memory = new Proxy(made, {
    construct: (target, given) => {
      const memory = new target(...given);
      memories.add(memory);
      return memory;
    },
  });
  const keep = (result) => {
    const { exports } = result.instance ?? result;
    for (const one of Object.values(exports ?? {})) if (one instanceof made) memories.add(one);
    return result;
  };
  for (const name of ["instantiate", "instantiateStreaming"]) {
    const real = WebAssembly[name];
    WebAssembly[name] = (...given) => real.apply(WebAssembly, given).then(keep);
  }
  WebAssembly.Instance = new Proxy(WebAssembly.Instance, {
    construct: (target, given) => keep(new target(...given)),
  });
}

/** Bytes of these memories' pages that were written to. */
function writtenBytes() {
  const words = 4096 / 4;
  let pages = 0;
  for (const { buffer } of memories) {
    const all = new Uint32Array(buffer);
    for (let start = 0; start < all.length; start += words) {
      for (let at = start; at < start + words; at += 1) {
        if (all[at] !== 0) {
          pages += 1;
          break;
        }
      }
    }
  }
  return pages * 4096;
}

function memoryAbove(before) {
  const after = writtenBytes();
  return {
    baseline_bytes: before,
    peak_bytes: after,
    peak_above_bytes: after - before,
    peak_reset: false,
    anonymous_above_bytes: after - before,
    file_above_bytes: 0,
  };
}

// --- checks: an unknown or missing field, or a value of the wrong type, is refused ---

const whole = (least) => (value) => Number.isSafeInteger(value) && value >= least;
const number = (value) => typeof value === "number" && value >= 0;
const object = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
const listOf = (test, least = 0) => (value) => Array.isArray(value) && value.length >= least && value.every(test);
const ascending = (values) => listOf(whole(1))(values) && values.every((one, at) => at === 0 || values[at - 1] < one);
const values = (value) => Array.isArray(value) && value.length > 0 && value.every((one) => typeof one === "number" || values(one));
const rows = listOf((row) => object(row) && Object.keys(row).length > 0 && Object.values(row).every(values), 1);

const signature = (value) =>
  listOf(object, 1)(value) &&
  value.every(
    (one) =>
      typeof one.name === "string" &&
      typeof one.dtype === "string" &&
      (one.shape === undefined || listOf(whole(1), 1)(one.shape)) &&
      Object.keys(one).every((name) => ["name", "dtype", "shape"].includes(name)),
  );

const JOB = {
  schema: (value) => value === SCHEMA,
  phase: (value) => typeof value === "string",
  runtime: (value) => typeof value === "string",
  model: (value) => typeof value === "string",
  threads: whole(1),
  rows,
};
const OPTIONAL = {
  signature,
  fixed_lengths: ascending,
  pad_id: whole(0),
  cpu_affinity: (value) => value === null || listOf(whole(0), 1)(value),
  runs: whole(1),
};
const REQUESTS = {
  block: { rows, warmup_runs: whole(0), warmup_seconds: number, min_runs: whole(0), min_seconds: number, max_seconds: number },
  outputs: { rows },
  profile: { rows, runs: whole(1) },
};
const WRITING = { read: { ids: listOf(whole(0), 1) }, write: { ids: listOf(whole(0), 1), count: whole(1) }, memory: {} };
const PHASES = ["describe", "load", "memory", "outputs", "time", "write"];
const CONTEXT = 1024; // tokens that a cache holds, where the job does not say

/** Refuse `document` unless it has all `required` fields and no others than these and `optional`. */
function fields(document, required, optional = {}) {
  const known = { ...required, ...optional };
  const missing = Object.keys(required).filter((name) => !(name in document));
  if (missing.length) throw new RunnerError("job", `missing: ${missing.join(", ")}`);
  const unknown = Object.keys(document).filter((name) => !Object.hasOwn(known, name));
  if (unknown.length) throw new RunnerError("job", `unknown: ${unknown.join(", ")}`);
  const wrong = Object.keys(document).filter((name) => !known[name](document[name]));
  if (wrong.length) throw new RunnerError("job", `a wrong value: ${wrong.map((name) => said(name, document[name])).join(", ")}`);
}

const said = (name, value) => `${name} = ${(JSON.stringify(value) ?? "undefined").slice(0, 80)}`;

function parsed(line) {
  let document;
  try {
    document = JSON.parse(line);
  } catch (error) {
    throw new RunnerError("job", `not one line of JSON (${error.message})`);
  }
  if (!object(document) || document.schema !== SCHEMA) throw new RunnerError("job", `not a document of schema ${SCHEMA}`);
  return document;
}

/** The job with defaults filled in. */
function checked(document) {
  const { rows: ofRows, ...always } = JOB;
  const writes = document.phase === "write";
  const optional = writes ? { context: whole(1), cpu_affinity: OPTIONAL.cpu_affinity } : OPTIONAL;
  fields(document, writes || document.phase === "describe" ? always : JOB, optional);
  const job = {
    signature: ["input_ids", "attention_mask"].map((name) => ({ name, dtype: "int64" })),
    fixed_lengths: [],
    pad_id: 0,
    cpu_affinity: null,
    runs: 20,
    ...(writes ? { context: CONTEXT } : {}),
    ...document,
  };
  if (!PHASES.includes(job.phase)) throw new RunnerError("job", `unknown phase '${job.phase}' (known: ${PHASES.join(", ")})`);
  const strange = job.signature.find((one) => !DTYPES.includes(one.dtype));
  if (strange) throw new RunnerError("job", `unknown dtype: ${strange.dtype} (known: ${DTYPES.join(", ")})`);
  const known = writes ? WRITERS : RUNTIMES;
  if (!Object.hasOwn(known, job.runtime)) {
    const doing = writes ? "writes text in a browser" : "in a browser";
    throw new RunnerError("unavailable", `no runtime '${job.runtime}' ${doing} (known: ${Object.keys(known).join(", ")})`);
  }
  if (job.cpu_affinity !== null) throw new RunnerError("unavailable", "a page cannot choose its processors (cpu_affinity)");
  return job;
}

// --- rows ---

/** Whether an input is a list of tokens: one flat list whose shape the signature does not give. */
const ofTokens = (job, name, list) => !Array.isArray(list[0]) && !job.signature.find((one) => one.name === name)?.shape;

/** Length of a row in tokens; 1 for an image. */
function tokensOf(job, row) {
  const found = Object.entries(row).find(([name, list]) => ofTokens(job, name, list));
  return found ? found[1].length : 1;
}

/** The row at the shortest fixed length that holds it (mask 0, pad id); as it is where there is none, or no tokens. */
function padded(job, row) {
  const lengths = job.fixed_lengths;
  if (!lengths.length || !Object.entries(row).every(([name, list]) => ofTokens(job, name, list))) return row;
  const longest = Math.max(...Object.values(row).map((list) => list.length));
  const length = lengths.find((one) => one >= longest);
  if (length === undefined) {
    throw new RunnerError("job", `a row is longer than the model's fixed length ${lengths.at(-1)}`);
  }
  const filled = ([name, list]) => {
    const fill = name === "input_ids" ? job.pad_id : 0;
    return [name, [...list, ...Array(length - list.length).fill(fill)]];
  };
  return Object.fromEntries(Object.entries(row).map(filled));
}

function prepared(job, model, given) {
  const all = given.map((row) => padded(job, row));
  const tokens = [...new Set(all.map((row) => tokensOf(job, row)))].sort((one, other) => one - other);
  return { inputs: all.map((row) => model.prepare(row)), tokens };
}

/** Outputs of every row; where there is one set per token, those of the padding are cut off. */
async function outputsOf(job, model, given) {
  const { inputs } = prepared(job, model, given);
  const found = [];
  for (const [at, one] of inputs.entries()) {
    const logits = model.logits(await model.call(one));
    const cut = job.fixed_lengths.length && Array.isArray(logits[0]) && Object.entries(given[at]).every(([name, list]) => ofTokens(job, name, list));
    found.push(cut ? logits.slice(0, tokensOf(job, given[at])) : logits);
    model.release(one);
  }
  return found;
}

// --- phases and requests ---

const clock = () => performance.now(); // milliseconds
const ns = (milliseconds) => Math.round(milliseconds * 1e6);

/** The clock's smallest step seen in 30 steps, ns. */
function clockResolution() {
  let least = Infinity;
  for (let steps = 0; steps < 30; steps += 1) {
    const before = clock();
    let after = clock();
    while (after === before) after = clock();
    least = Math.min(least, after - before);
  }
  return ns(least);
}

/** A pushed file; null where it is missing and `optional`. */
async function bytesOf(place, optional = false) {
  const response = await fetch(new URL(`./files/${place.split("/").map(encodeURIComponent).join("/")}`, import.meta.url), { cache: "no-store" });
  if (!response.ok && optional) return null;
  if (!response.ok) throw new RunnerError("job", `no such model file: ${place}`);
  return new Uint8Array(await response.arrayBuffer());
}

/** Versions of the runtime's packages; an error of kind unavailable where the page's server has them not. */
async function versionsOf(names) {
  const found = {};
  for (const name of names) {
    const response = await fetch(new URL(`./node_modules/${name}/package.json`, import.meta.url));
    if (!response.ok) throw new RunnerError("unavailable", `package '${name}' is not installed beside the page (npm ci)`);
    found[name] = (await response.json()).version;
  }
  return found;
}

async function run(job) {
  const runtime = RUNTIMES[job.runtime];
  const versions = await versionsOf(runtime.DISTRIBUTIONS);
  const asked = clock();
  const bytes = await bytesOf(job.model);
  const fetched = clock();
  const load = await runtime.open(job);
  const opened = clock();
  const before = job.phase === "memory" ? writtenBytes() : 0;
  const start = clock();
  const model = await load(bytes);
  const loaded = clock();
  const answer = {
    import_ns: ns(opened - fetched),
    load_ns: ns(loaded - start),
    observed: {
      runtime: job.runtime,
      versions,
      ...model.observed,
      tokens: [],
      fetch_ns: ns(fetched - asked),
      ...thePage(),
    },
  };
  if (job.phase === "describe") return { model, answer: { ...answer, inputs: model.inputs } };
  const { inputs, tokens } = prepared(job, model, job.rows);
  answer.observed.tokens = tokens;
  const first = clock();
  await model.call(inputs[0]);
  answer.first_inference_ns = ns(clock() - first);
  if (job.phase === "memory") {
    for (let at = 0; at < job.runs; at += 1) await model.call(inputs[at % inputs.length]);
    answer.memory = { ...memoryAbove(before), runs: job.runs };
    Object.assign(answer.observed, await pageMemory());
  }
  inputs.forEach(model.release);
  if (job.phase === "outputs") answer.logits = await outputsOf(job, model, job.rows);
  return { model, answer };
}

const thePage = () => ({
  cpu_affinity: null,
  clock_resolution_ns: clockResolution(),
  cross_origin_isolated: globalThis.crossOriginIsolated,
  user_agent: navigator.userAgent,
  hardware_concurrency: navigator.hardwareConcurrency,
  where: "page",
});

/** Where the page was opened with `?page_memory`: all that it holds, as the browser counts; that takes about 20 s. */
async function pageMemory() {
  const sizes = [...memories].map((one) => one.buffer.byteLength);
  const heap = {
    wasm_memory_bytes: sizes.reduce((sum, one) => sum + one, 0),
    js_heap_bytes: performance.memory?.usedJSHeapSize ?? null, // Chromium's alone, rounded where not isolated
  };
  if (!new URL(location.href).searchParams.has("page_memory")) return heap;
  if (!performance.measureUserAgentSpecificMemory) return { ...heap, page_bytes: null };
  return { ...heap, page_bytes: (await performance.measureUserAgentSpecificMemory()).bytes };
}

/** Warm up until both minima are met, then sample until both are met or time is up. */
async function block(job, model, request) {
  const { inputs, tokens } = prepared(job, model, request.rows);
  const { call } = model;
  const limit = request.max_seconds * 1000;
  const began = clock();
  let warm = 0;
  while (warm < request.warmup_runs || clock() - began < request.warmup_seconds * 1000) {
    await call(inputs[warm % inputs.length]);
    warm += 1;
    if (clock() - began > limit) break;
  }
  const samples = [];
  const needed = request.min_seconds * 1000;
  const start = clock();
  for (;;) {
    const one = inputs[samples.length % inputs.length];
    const before = clock();
    await call(one);
    const after = clock();
    samples.push(after - before);
    if ((samples.length >= request.min_runs && after - start >= needed) || after - start > limit) break;
  }
  const wall = clock() - start;
  inputs.forEach(model.release);
  return {
    answer: "block",
    tokens,
    samples_ns: samples.map(ns),
    warmup: { runs: warm, seconds: (start - began) / 1000 },
    ...spent(wall),
    energy: null,
  };
}

const spent = (wall) => ({ wall_ns: ns(wall), cpu_ns: null, machine_busy_ns: null, cpus: navigator.hardwareConcurrency });

/** Which of the `known` requests a document is; its fields are checked. */
function kindOf({ schema, request, ...rest }, known) {
  if (typeof request !== "string" || !Object.hasOwn(known, request)) {
    throw new RunnerError("job", `unknown request ${JSON.stringify(request)} (known: ${Object.keys(known).join(", ")})`);
  }
  fields(rest, known[request]);
  return request;
}

async function answerRequest({ job, model }, document) {
  const request = kindOf(document, REQUESTS);
  if (request === "profile") throw new RunnerError("unavailable", `${job.runtime} has no profiler in a browser`);
  if (request === "block") return block(job, model, document);
  return { answer: "outputs", logits: await outputsOf(job, model, document.rows) };
}

// --- writing text ---

async function openWriter(job) {
  const { open, files, optional } = WRITERS[job.runtime];
  const versions = await versionsOf(onnx.DISTRIBUTIONS);
  const asked = clock();
  const found = {};
  for (const [name, place] of Object.entries(files(job))) found[name] = await bytesOf(place, optional.includes(name));
  const fetched = clock();
  const library = await onnx.library(job);
  const opened = clock();
  const before = writtenBytes();
  const start = clock();
  const writer = await open(library, job, found);
  const loaded = clock();
  const observed = {
    runtime: job.runtime,
    versions,
    ...library.observed,
    context: writer.context,
    fetch_ns: ns(fetched - asked),
    ...thePage(),
  };
  return { writer, before, answer: { import_ns: ns(opened - fetched), load_ns: ns(loaded - start), observed } };
}

async function answerWriting({ writer, before }, document) {
  const request = kindOf(document, WRITING);
  if (request === "memory") return { answer: "memory", memory: memoryAbove(before) };
  const { ids, count = 0 } = document;
  if (ids.length + count > writer.context) throw new RunnerError("job", `${ids.length + count} tokens; the cache holds ${writer.context}`);
  const began = clock();
  let token = await writer.read(ids);
  const first = clock() - began;
  const samples = [];
  const tokens = [];
  for (let at = 0; at < count; at += 1) {
    tokens.push(token);
    const start = clock();
    token = await writer.feed(token);
    samples.push(ns(clock() - start));
  }
  const told = spent(clock() - began);
  if (request === "read") return { answer: "read", samples_ns: [ns(first)], token, ...told };
  return { answer: "write", first_ns: ns(first), samples_ns: samples, tokens, ...told };
}

// --- the wire ---

let staying = null; // what answers requests, in the phases `time` and `write`

function errorOf(error) {
  if (error instanceof RunnerError) return { kind: error.kind, message: error.message };
  const text = error instanceof Error ? `${error.name}: ${error.message}` : String(error);
  return { kind: "failed", message: text.replace(/\s+/g, " ").slice(0, 500) };
}

async function answer(line) {
  const document = (fieldsOfAnswer) => JSON.stringify({ schema: SCHEMA, version: VERSION, ...fieldsOfAnswer });
  try {
    const asked = parsed(line);
    if (staying) return { line: document(await staying(asked)), code: null };
    const job = checked(asked);
    const found = job.phase === "write" ? await openWriter(job) : await run(job);
    if (job.phase === "time") staying = (request) => answerRequest({ job, model: found.model }, request);
    if (job.phase === "write") staying = (request) => answerWriting(found, request);
    return { line: document({ phase: job.phase, ...found.answer }), code: staying ? null : 0 };
  } catch (error) {
    if (!(error instanceof RunnerError)) console.error(error);
    return { line: document({ error: errorOf(error) }), code: 1 };
  }
}

watchMemories();
globalThis.edgekd = { answer };
