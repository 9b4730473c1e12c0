// What the tokenizer must know of characters: the answers of the `tokenizers` library, not those of this browser.

import { FLAGS, ORDERS, RUNS } from "./unicode_tables.js";

export { FLAGS };

class Table {
  private readonly starts: number[] = [];
  private readonly values: number[] = [];
  private readonly common: number[]; // of the characters that most texts are made of

  constructor(runs: string) {
    const numbers = runs.split(" ").map((one) => parseInt(one, 36));
    for (let at = 0, start = 0; at < numbers.length; start += numbers[at]!, at += 2) {
      this.starts.push(start);
      this.values.push(numbers[at + 1]!);
    }
    this.common = Array.from({ length: 0x500 }, (_, code) => this.found(code));
  }

  of(code: number): number {
    return this.common[code] ?? this.found(code);
  }

  private found(code: number): number {
    let low = 0;
    let high = this.starts.length;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (this.starts[middle]! <= code) low = middle;
      else high = middle;
    }
    return this.values[low]!;
  }
}

const flags = new Table(RUNS);
const orders = new Table(ORDERS);

/** Whether a character has any of these bits (`FLAGS.space` ..). */
export function has(character: string, bits: number): boolean {
  return (flags.of(character.codePointAt(0)!) & bits) !== 0;
}

/** The class that orders marks after a letter; 0: not moved. */
export function order(character: string): number {
  return character < "\u0300" ? 0 : orders.of(character.codePointAt(0)!);
}

/** Canonical decomposition, in full. */
export function decomposed(character: string): string[] {
  return has(character, FLAGS.decomposes) ? [...character.normalize("NFD")] : [character];
}

/** Lower case of one character, whatever stands beside it: a final sigma is none. */
export function lowered(character: string): string[] {
  return has(character, FLAGS.lowers) ? [...character.toLowerCase()] : [character];
}
