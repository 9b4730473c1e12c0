// What a page and its worker say to each other.

import type { Host } from "./host.js";
import type { LoadOptions, Progress, Task } from "./settings.js";

export type Question =
  | { id: number; ask: "load"; task: Task; url: string; options: LoadOptions }
  | { id: number; ask: "abort"; of: number }
  | { id: number; ask: "call"; of: number; method: string; given: unknown[] }
  | { id: number; ask: "close"; of: number };

export type Reply =
  | { id: number; progress: Progress }
  | { id: number; value: unknown }
  | { id: number; error: { name: string; message: string } };

export type About = Host["about"];
