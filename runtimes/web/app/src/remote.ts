// A model in a worker, asked by messages.

import { BundleError } from "./errors.js";
import type { Host } from "./host.js";
import type { About, Question, Reply } from "./messages.js";
import type { LoadOptions, Progress, Task } from "./settings.js";

interface Waiting {
  resolve(value: unknown): void;
  reject(error: unknown): void;
  progress?: ((progress: Progress) => void) | undefined;
}

let number = 0;

/** Loads a model in `options.worker`, or in a worker of its own, which ends with the model. */
export async function remote(task: Task, url: string, options: LoadOptions): Promise<Host> {
  const { worker: given, onProgress, signal, ...rest } = options;
  signal?.throwIfAborted();
  const own = !(given instanceof Worker);
  const worker = own ? new Worker(new URL("./worker.js", import.meta.url), { type: "module" }) : given;
  const waiting = new Map<number, Waiting>();
  let broken: BundleError | null = null;

  const ask = (question: Omit<Question, "id"> & Record<string, unknown>, progress?: Waiting["progress"]): Promise<unknown> =>
    new Promise((resolve, reject) => {
      if (broken) return reject(broken);
      number += 1;
      waiting.set(number, { resolve, reject, progress });
      worker.postMessage({ ...question, id: number });
    });
  const heard = ({ data }: MessageEvent<Reply>): void => {
    const one = waiting.get(data.id);
    if (!one) return;
    if ("progress" in data) return one.progress?.(data.progress);
    waiting.delete(data.id);
    if ("error" in data) one.reject(rebuilt(data.error));
    else one.resolve(data.value);
  };
  const failed = (event: ErrorEvent): void => {
    broken = new BundleError(`the worker failed (${event.message || "its script did not load"})`);
    for (const one of waiting.values()) one.reject(broken);
    waiting.clear();
  };
  worker.addEventListener("message", heard);
  worker.addEventListener("error", failed);
  const ended = (): void => {
    worker.removeEventListener("message", heard);
    worker.removeEventListener("error", failed);
    if (own) worker.terminate();
  };

  const loading = ask({ ask: "load", task, url, options: rest }, onProgress);
  const of = number;
  const abort = (): void => void ask({ ask: "abort", of });
  signal?.addEventListener("abort", abort, { once: true });
  let about: About;
  try {
    about = (await loading) as About;
  } catch (error) {
    ended();
    throw signal?.aborted ? signal.reason : error;
  } finally {
    signal?.removeEventListener("abort", abort);
  }
  let open = true;
  return {
    about,
    ask: async (method, ...values) => {
      if (!open) throw new BundleError(`${about.name} was closed`);
      return ask({ ask: "call", of, method, given: values });
    },
    close: async () => {
      if (!open) return;
      open = false;
      if (!broken) await ask({ ask: "close", of });
      ended();
    },
  };
}

function rebuilt({ name, message }: { name: string; message: string }): Error {
  if (name === "BundleError") return new BundleError(message);
  return Object.assign(new Error(message), { name });
}
