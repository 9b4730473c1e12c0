// What opens a model: one module per runtime.

import type { LoadOptions, Settings } from "../settings.js";

/** One text: values by the model's input names. */
export type Row = Record<string, number[]>;

/** The first output of one text, without the batch dimension. */
export interface Output {
  data: ArrayLike<number>;
  shape: number[];
}

/** What runs the model. */
export interface Runtime {
  name: string;
  version: string | null;
  accelerator: "wasm" | "webgpu";
  threads: number;
  /** Why it is not what was asked for. */
  fallback: string | null;
  crossOriginIsolated: boolean;
  where: "page" | "worker";
  /** Whether the files were compared with bundle.json: browsers can in secure contexts alone. */
  digestsChecked: boolean;
}

export interface Engine {
  readonly runtime: Omit<Runtime, "digestsChecked">;
  run(row: Row): Promise<Output>;
  close(): Promise<void>;
}

export interface Job {
  settings: Settings;
  model: Uint8Array<ArrayBuffer>;
  options: LoadOptions;
  /** A row to try the model with. */
  probe: Row;
}

/** Where the runtime's own files lie. The build puts them beside the library. */
export function runtimeFiles({ runtimeFiles: given }: LoadOptions): string {
  const folder = given === undefined ? new URL("./runtime/", import.meta.url).href : String(given);
  return folder.endsWith("/") ? folder : `${folder}/`;
}

export const inWorker = (): boolean => typeof document === "undefined";

export const isolated = (): boolean => globalThis.crossOriginIsolated === true;
