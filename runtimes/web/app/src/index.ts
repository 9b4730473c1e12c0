/**
 * A text model in an app: text in, a typed answer out.
 *
 *     const classifier = await EdgeClassifier.load("/my-intents/");
 *     await classifier.classify("my card has not arrived", 3); // [{ label, score }, ..]
 *
 * `load` takes the URL of the folder of a bundle (bundle.json, app.json, model/), fetches, checks and keeps its files, and
 * opens the model on ONNX Runtime Web or LiteRT.js, on this page or in a worker. A text longer than the model takes is cut
 * on its right; a longer context of a question is read in windows. Places in a text are those of its JavaScript string.
 * Errors are `BundleError`, with a message that says what to do; an aborted load throws its signal's reason.
 */

import type { Runtime } from "./engines/engine.js";
import { type Host, local } from "./host.js";
import type { Report } from "./model.js";
import { remote } from "./remote.js";
import type { LoadOptions, Task } from "./settings.js";
import type { Answer, Ranked, Tagged } from "./tasks.js";

export { BundleError } from "./errors.js";
export type { Answer, LoadOptions, Ranked, Report, Runtime, Tagged };
export type { Progress } from "./settings.js";

abstract class Edge {
  protected constructor(private readonly host: Host) {}

  /** The bundle's name. */
  get name(): string {
    return this.host.about.name;
  }

  get labels(): readonly string[] {
    return this.host.about.labels;
  }

  /** What runs the model, and why it is not what was asked for. */
  get runtime(): Runtime {
    return this.host.about.runtime;
  }

  /** Runs the golden texts of the bundle: whether this browser gives the ids and the outputs that were verified. */
  selfTest(): Promise<Report> {
    return this.host.ask("selfTest") as Promise<Report>;
  }

  /** Gives the model's memory back; its worker, where it has one of its own, ends. */
  close(): Promise<void> {
    return this.host.close();
  }

  protected ask(method: string, ...given: unknown[]): Promise<unknown> {
    return this.host.ask(method, ...given);
  }
}

function host(task: Task, url: string | URL, options: LoadOptions): Promise<Host> {
  const base = typeof document === "undefined" ? location.href : document.baseURI;
  const place = new URL(url, base).href;
  const { runtimeFiles } = options;
  const asked = runtimeFiles === undefined ? options : { ...options, runtimeFiles: new URL(runtimeFiles, base).href };
  return options.worker ? remote(task, place, asked) : local(task, place, asked);
}

/** One label for a text. */
export class EdgeClassifier extends Edge {
  static async load(url: string | URL, options: LoadOptions = {}): Promise<EdgeClassifier> {
    return new EdgeClassifier(await host("text-classification", url, options));
  }

  /** The `topK` labels with their probabilities, best first. */
  classify(text: string, topK = 3): Promise<Ranked[]> {
    return this.ask("classify", text, topK) as Promise<Ranked[]>;
  }
}

/** Labelled spans of a text. */
export class EdgeTagger extends Edge {
  static async load(url: string | URL, options: LoadOptions = {}): Promise<EdgeTagger> {
    return new EdgeTagger(await host("token-classification", url, options));
  }

  /** In the order of the text. */
  tag(text: string): Promise<Tagged[]> {
    return this.ask("tag", text) as Promise<Tagged[]>;
  }
}

/** The words of a text that answer a question about it. */
export class EdgeAnswerer extends Edge {
  static async load(url: string | URL, options: LoadOptions = {}): Promise<EdgeAnswerer> {
    return new EdgeAnswerer(await host("question-answering", url, options));
  }

  /** The best span of the context and its probability; an empty text says that the context has no answer. */
  answer(question: string, context: string): Promise<Answer> {
    return this.ask("answer", question, context) as Promise<Answer>;
  }
}

/** A vector for a text; texts that mean the same have a large cosine. */
export class EdgeEmbedder extends Edge {
  static async load(url: string | URL, options: LoadOptions = {}): Promise<EdgeEmbedder> {
    return new EdgeEmbedder(await host("sentence-similarity", url, options));
  }

  embed(text: string): Promise<number[]> {
    return this.ask("embed", text) as Promise<number[]>;
  }
}
