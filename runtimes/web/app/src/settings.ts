// app.json, and what a caller may ask for.

import { BundleError } from "./errors.js";

export type Task = "text-classification" | "token-classification" | "question-answering" | "sentence-similarity";

/** app.json: what the library knows of a model. */
export interface Settings {
  schema: string;
  name: string;
  task: Task;
  target: "onnx" | "litert";
  scheme: string;
  file: string;
  inputs: { name: string; dtype: string }[];
  lengths: number[]; // not empty: the file takes texts of these lengths only
  max_length: number;
  pad_id: number;
  labels: string[];
  bound: number;
  may_be_none: boolean; // these three of question answering alone
  longest_answer: number;
  overlap: number;
}

/** How far a file has come; `total` is unknown where the server does not say. */
export interface Progress {
  file: string;
  loaded: number;
  total: number | undefined;
  cached: boolean;
}

export interface LoadOptions {
  /** "webgpu" is used where the browser has it and the model runs on it; `runtime.fallback` says why it was not. */
  accelerator?: "wasm" | "webgpu";
  /** More than one only where the page is cross-origin isolated. Default 1. */
  threads?: number;
  /** Folder of the runtime's own files (.wasm); default: `runtime/` beside this library. */
  runtimeFiles?: string | URL;
  /** Keep the bundle's files in the Cache API, by their digests. Default true. */
  cache?: boolean;
  onProgress?: (progress: Progress) => void;
  /** Ends the loading, with the signal's reason as the error. */
  signal?: AbortSignal;
  /** Run in a worker: true for one of its own, which `close` ends. */
  worker?: boolean | Worker;
}

const SCHEMA = "edgekd/app/1";
const TARGETS = ["onnx", "litert"];

/** Refuses what is no app.json, is for another task, or for a runtime that browsers have not. */
export function checked(found: unknown, where: string, task: Task): Settings {
  const settings = found as Settings | null;
  if (settings?.schema !== SCHEMA) {
    throw new BundleError(`${where}: app.json is not of ${SCHEMA}: make the bundle with this library's edgekd`);
  }
  if (settings.task !== task) throw new BundleError(`${where}: is for ${settings.task}, not ${task}`);
  if (!TARGETS.includes(settings.target)) {
    throw new BundleError(`${where}: no browser runs the target ${settings.target}; make the bundle for ${TARGETS.join(" or ")}`);
  }
  return settings;
}
