// One page for every task: the model of the folder above, a text, its answer, and the self-test.

import { BundleError, EdgeAnswerer, EdgeClassifier, EdgeEmbedder, EdgeTagger } from "../dist/index.js";

const TASKS = {
  "text-classification": [EdgeClassifier, (model, text) => model.classify(text)],
  "token-classification": [EdgeTagger, (model, text) => model.tag(text)],
  "question-answering": [EdgeAnswerer, (model, text) => model.answer(part("question").value, text)],
  "sentence-similarity": [EdgeEmbedder, (model, text) => model.embed(text)],
};
const part = (id) => document.getElementById(id);
const { task } = await (await fetch("../app.json")).json();
const [Kind, answer] = TASKS[task];
part("question-line").hidden = task !== "question-answering";

let model = null;

/** Loads the model as the boxes say; the one before is closed. */
async function load() {
  for (const id of ["ask", "test"]) part(id).disabled = true;
  await model?.close();
  model = null;
  const arrived = new Map();
  const onProgress = ({ file, loaded, total }) => {
    arrived.set(file, [loaded, total ?? loaded]);
    const sums = [...arrived.values()].reduce(([one, other], [done, all]) => [one + done, other + all], [0, 0]);
    [part("progress").value, part("progress").max] = sums;
  };
  try {
    model = await Kind.load("../", {
      worker: part("worker").checked,
      accelerator: part("webgpu").checked ? "webgpu" : "wasm",
      threads: navigator.hardwareConcurrency,
      onProgress,
    });
  } catch (error) {
    part("state").textContent = error instanceof BundleError ? error.message : String(error);
    return;
  }
  const { name, version, accelerator, threads, where, fallback } = model.runtime;
  part("name").textContent = document.title = model.name;
  part("state").textContent = `${name} ${version ?? ""} on ${accelerator}, threads: ${threads}, in a ${where}${fallback ? ` (${fallback})` : ""}`;
  for (const id of ["ask", "test"]) part(id).disabled = false;
}

const shown = (value) => (part("answer").textContent = JSON.stringify(value, null, 2));

part("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const began = performance.now();
  const found = await answer(model, part("text").value);
  shown({ answer: found, milliseconds: Math.round(10 * (performance.now() - began)) / 10 });
});
part("test").addEventListener("click", async () => shown(await model.selfTest()));
for (const id of ["worker", "webgpu"]) part(id).addEventListener("change", load);
await load();
