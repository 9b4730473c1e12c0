// Where a model lives: on this page, or in a worker. Both are asked alike.

import type { Runtime } from "./engines/engine.js";
import { BundleError } from "./errors.js";
import { opened } from "./model.js";
import type { LoadOptions, Task } from "./settings.js";
import { Answerer, Classifier, Embedder, Tagger } from "./tasks.js";

export interface Host {
  readonly about: { name: string; labels: readonly string[]; runtime: Runtime };
  ask(method: string, ...given: unknown[]): Promise<unknown>;
  close(): Promise<void>;
}

const MODELS = {
  "text-classification": Classifier,
  "token-classification": Tagger,
  "question-answering": Answerer,
  "sentence-similarity": Embedder,
};

/** A model on this page (or in the worker that this runs in). It answers one question after the other. */
export async function local(task: Task, url: string, options: LoadOptions): Promise<Host> {
  const model = new MODELS[task](await opened(task, url, options));
  const methods = model as unknown as Record<string, (...given: unknown[]) => Promise<unknown>>;
  let last: Promise<unknown> = Promise.resolve();
  let open = true;
  const next = <Value>(work: () => Promise<Value>): Promise<Value> => {
    const found = last.then(work);
    last = found.catch(() => undefined);
    return found;
  };
  return {
    about: { name: model.settings.name, labels: model.settings.labels, runtime: model.runtime },
    ask: (method, ...given) =>
      next(() => {
        if (!open) throw new BundleError(`${model.settings.name} was closed`);
        return methods[method]!(...given);
      }),
    close: () =>
      next(async () => {
        if (open) await model.close();
        open = false;
      }),
  };
}
