// A bundle, opened: what its tokenizer makes of a text, and what its model says. One class per task answers with it.

import { type Engine, type Row, type Runtime, runtimeFiles } from "./engines/engine.js";
import { BundleError, told } from "./errors.js";
import { Files } from "./files.js";
import { checked, type LoadOptions, type Settings, type Task } from "./settings.js";
import { type Encoding, Tokenizer } from "./text/tokenizer.js";

/** The golden texts on this machine. */
export interface Report {
  passed: boolean;
  texts: number;
  largestDifference: number;
  bound: number;
  /** The median of a run of the model. */
  milliseconds: number | null;
  runtime: Runtime;
  /** Token ids that differ, and outputs beyond the bound. */
  wrong: string[];
  rows: { text: string; idsEqual: boolean; difference: number | null; milliseconds: number | null; answer: unknown }[];
}

interface Golden {
  texts: string[];
  inputs: Record<string, number[][]>;
  outputs: { logits: (number[] | number[][])[] };
}

interface Opened {
  settings: Settings;
  tokenizer: Tokenizer;
  engine: Engine;
  files: Files;
}

export abstract class Model {
  readonly settings: Settings;
  protected readonly tokenizer: Tokenizer;
  private readonly engine: Engine;
  private readonly files: Files;

  constructor({ settings, tokenizer, engine, files }: Opened) {
    this.settings = settings;
    this.tokenizer = tokenizer;
    this.engine = engine;
    this.files = files;
  }

  get runtime(): Runtime {
    return { ...this.engine.runtime, digestsChecked: this.files.checked };
  }

  /** What an app says to a golden text. */
  protected abstract said(text: string): Promise<unknown>;

  protected encode(text: string, second?: string): Encoding {
    return this.tokenizer.encode(text, this.settings.max_length, second);
  }

  /** The encoding of a golden text. */
  protected encodeGolden(text: string): Encoding {
    return this.encode(text);
  }

  /** The model's output for one text: a row of numbers, or one for each of its tokens. */
  protected async logits(encoding: Encoding): Promise<number[][]> {
    const { data, shape } = await this.engine.run(rowOf(this.settings, encoding));
    const width = shape.at(-1)!;
    const count = shape.length > 1 ? encoding.ids.length : 1; // without what was padded
    return Array.from({ length: count }, (_, row) => Array.from({ length: width }, (_, at) => Number(data[row * width + at])));
  }

  async selfTest(): Promise<Report> {
    const golden = (await this.files.json("model/golden.json")) as Golden;
    const { bound, inputs } = this.settings;
    const rows: Report["rows"] = [];
    const wrong: string[] = [];
    for (const [number, text] of golden.texts.entries()) {
      const encoding = this.encodeGolden(text);
      const answer = await this.said(text);
      const columns = columnsOf(encoding);
      const idsEqual = inputs.every(({ name }) => String(columns[name]) === String(golden.inputs[name]![number]));
      let difference: number | null = null;
      const began = performance.now();
      if (idsEqual) {
        const expected = golden.outputs.logits[number]!.flat();
        const found = (await this.logits(encoding)).flat();
        difference = Math.max(...found.map((one, at) => Math.abs(one - expected[at]!)));
      }
      const milliseconds = idsEqual ? performance.now() - began : null;
      rows.push({ text, idsEqual, difference, milliseconds, answer });
      if (difference === null) wrong.push(`text ${number + 1}: token ids differ`);
      else if (!(difference <= bound)) wrong.push(`text ${number + 1}: an output is off by ${Number(difference.toPrecision(4))}`);
    }
    const timed = rows.flatMap((row) => row.milliseconds ?? []).sort((one, other) => one - other);
    return {
      passed: wrong.length === 0,
      texts: rows.length,
      largestDifference: Math.max(0, ...rows.map((row) => row.difference ?? 0)),
      bound,
      milliseconds: timed[timed.length >> 1] ?? null,
      runtime: this.runtime,
      wrong,
      rows,
    };
  }

  close(): Promise<void> {
    return this.engine.close();
  }
}

/** Fetches a bundle and opens its model; throws BundleError, or the signal's reason. */
export async function opened(task: Task, url: string, options: LoadOptions): Promise<Opened> {
  const files = await Files.open(url, options);
  const settings = checked(await files.json("app.json"), url, task);
  const [file, model] = await Promise.all([files.json("model/tokenizer.json"), files.bytes(`model/${settings.file}`)]);
  const tokenizer = new Tokenizer(file as ConstructorParameters<typeof Tokenizer>[0]);
  const { open } = settings.target === "onnx" ? await import("./engines/onnx.js") : await import("./engines/litert.js");
  const pair = task === "question-answering" ? "" : undefined;
  const probe = rowOf(settings, tokenizer.encode("", settings.max_length, pair));
  options.signal?.throwIfAborted();
  try {
    const engine = await open({ settings, model, options, probe });
    return { settings, tokenizer, engine, files };
  } catch (error) {
    const place = runtimeFiles(options);
    throw new BundleError(`${url}: the model does not open (${told(error)}); the runtime's files are looked for in ${place}`);
  }
}

function columnsOf({ ids, types }: Encoding): Row {
  return { input_ids: ids, attention_mask: ids.map(() => 1), token_type_ids: types };
}

/** What the model reads, at the shortest of its lengths that holds it. */
function rowOf({ inputs, lengths, pad_id: pad }: Settings, encoding: Encoding): Row {
  const columns = columnsOf(encoding);
  const length = lengths.find((one) => one >= encoding.ids.length) ?? encoding.ids.length;
  const filled = (name: string): number[] => {
    const values = columns[name];
    if (!values) throw new BundleError(`the model has an input ${name}, which no text is`);
    return [...values, ...Array<number>(length - values.length).fill(name === "input_ids" ? pad : 0)];
  };
  return Object.fromEntries(inputs.map(({ name }) => [name, filled(name)]));
}

export function softmax(logits: readonly number[]): number[] {
  const most = Math.max(...logits);
  const shares = logits.map((one) => Math.exp(one - most));
  const sum = shares.reduce((total, one) => total + one, 0);
  return shares.map((one) => one / sum);
}

export function highest(values: readonly number[]): number {
  return values.reduce((best, one, at) => (one > values[best]! ? at : best), 0);
}
