// The parts of a tokenizer.json that change or split a text, keeping every character's place.
//
// `@huggingface/tokenizers` has them too, but without places, and with the browser's Unicode; so it is asked for the
// model alone (tokenizer.ts). What is not written here is refused by its name.

import { BundleError } from "../errors.js";
import { Aligned, type Change } from "./aligned.js";
import { decomposed, FLAGS, has, lowered, order } from "./unicode.js";

export type Part = Record<string, unknown> & { type?: string };
export type Normalizer = (text: Aligned) => Aligned;
export type PreTokenizer = (text: Aligned) => Aligned[];

const refused = (kind: string, what: unknown): BundleError =>
  new BundleError(`tokenizer.json: the ${kind} ${String(what)} is not run in a browser; use a student with another tokenizer`);

// --- normalizers ---

export function normalizersOf(part: Part | null): Normalizer[] {
  switch (part?.type) {
    case undefined:
      return [];
    case "Sequence":
      return (part["normalizers"] as Part[]).flatMap(normalizersOf);
    case "BertNormalizer":
      return bertNormalizers(part);
    case "Lowercase":
      return [(text) => text.expanded(lowered)];
    case "Replace":
      return [replaceOf(part)];
    case "Prepend":
      return [(text) => text.prepended(part["prepend"] as string)];
    default:
      throw refused("normalizer", part?.type);
  }
}

function bertNormalizers(part: Part): Normalizer[] {
  const asked = (name: string, otherwise: boolean): boolean => (part[name] as boolean | null | undefined) ?? otherwise;
  const lowercase = asked("lowercase", true);
  const found: Normalizer[] = [];
  if (asked("clean_text", true)) {
    found.push((text) => text.expanded((one) => (has(one, FLAGS.cleaned) ? [] : has(one, FLAGS.blank) ? [" "] : [one])));
  }
  if (asked("handle_chinese_chars", true)) {
    found.push((text) => text.expanded((one) => (has(one, FLAGS.chinese) ? [" ", one, " "] : [one])));
  }
  if (asked("strip_accents", lowercase)) {
    found.push((text) => inOrder(text).expanded((one) => (has(one, FLAGS.mark) ? [] : [one])));
  }
  if (lowercase) found.push((text) => text.expanded(lowered));
  return found;
}

/** Decomposed; marks after a letter stand in the order of their classes, those of one class as they came. */
function inOrder(text: Aligned): Aligned {
  const parts = text.characters.flatMap((one) =>
    decomposed(one).map((character, at) => ({ character, inserted: at > 0, order: order(character) })),
  );
  const sorted: Change[] = [];
  for (let start = 0; start < parts.length; ) {
    let end = start + 1;
    if (parts[start]!.order) while (parts[end]?.order) end += 1;
    sorted.push(...parts.slice(start, end).sort((one, other) => one.order - other.order));
    start = end;
  }
  return text.replaced(sorted);
}

function replaceOf(part: Part): Normalizer {
  const pattern = part["pattern"] as { String?: string; Regex?: string };
  const content = part["content"] as string;
  if (pattern.String) {
    const wanted = [...pattern.String];
    const match = (text: readonly string[], at: number): number =>
      wanted.every((one, n) => text[at + n] === one) ? wanted.length : 0;
    return (text) => text.substituted(match, content);
  }
  if (pattern.Regex !== " {2,}") throw refused("normalizer Replace of", JSON.stringify(pattern));
  const blanks = (text: readonly string[], at: number): number => {
    let end = at;
    while (text[end] === " ") end += 1;
    return end - at > 1 ? end - at : 0;
  };
  return (text) => text.substituted(blanks, content);
}

// --- pre-tokenizers ---

export function preTokenizersOf(part: Part | null): PreTokenizer[] {
  switch (part?.type) {
    case undefined:
      return [];
    case "Sequence":
      return (part["pretokenizers"] as Part[]).flatMap(preTokenizersOf);
    case "BertPreTokenizer":
      return [splitAsBert];
    case "ByteLevel":
      return [byteLevelOf(part)];
    case "Metaspace":
      return [metaspaceOf(part)];
    default:
      throw refused("pre-tokenizer", part?.type);
  }
}

/** Split at white space and at punctuation, each mark a word. Parts may be empty. */
export function splitAsBert(text: Aligned): Aligned[] {
  const words: Aligned[] = [];
  let start = 0;
  text.characters.forEach((one, at) => {
    const punctuation = has(one, FLAGS.punctuation);
    if (!punctuation && !has(one, FLAGS.space)) return;
    words.push(text.slice(start, at));
    if (punctuation) words.push(text.slice(at, at + 1));
    start = at + 1;
  });
  words.push(text.slice(start));
  return words.filter((one) => one.length > 0);
}

// GPT-2's alphabet: a printable byte stands for itself, the others for the characters from U+0100 on.
const ALPHABET = ((): string[] => {
  let next = 0x100;
  const printable = (byte: number): boolean => (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte !== 0xad);
  return Array.from({ length: 256 }, (_, byte) => String.fromCharCode(printable(byte) ? byte : next++));
})();
const UTF8 = new TextEncoder();
const CHUNKS = /'s|'t|'re|'ve|'m|'ll|'d| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+/g;

/** An ASCII character of the same kind, so that GPT-2's expression need not know Unicode. */
function kind(character: string): string {
  if (character < "\x80" && !has(character, FLAGS.gap)) return character;
  if (character === " ") return " ";
  if (has(character, FLAGS.letter)) return "x";
  if (has(character, FLAGS.number)) return "0";
  return has(character, FLAGS.gap) ? "\n" : "!";
}

function byteLevelOf(part: Part): PreTokenizer {
  const prefix = (part["add_prefix_space"] as boolean | undefined) ?? true;
  const chunked = (part["use_regex"] as boolean | undefined) ?? true;
  const bytes = (one: string): string[] => Array.from(UTF8.encode(one), (byte) => ALPHABET[byte]!);
  return (given) => {
    const text = prefix && given.characters[0] !== " " ? given.prepended(" ") : given;
    if (!chunked) return [text.expanded(bytes)];
    const chunks = text.characters.map(kind).join("").matchAll(CHUNKS);
    return Array.from(chunks, (one) => text.slice(one.index, one.index + one[0].length).expanded(bytes));
  };
}

function metaspaceOf(part: Part): PreTokenizer {
  const mark = part["replacement"] as string;
  // Older files say add_prefix_space instead.
  const older = (part["add_prefix_space"] as boolean | undefined) ?? true ? "always" : "never";
  const scheme = (part["prepend_scheme"] as string | undefined) ?? older;
  const split = (part["split"] as boolean | undefined) ?? true;
  return (given) => {
    const marked = given.expanded((one) => [one === " " ? mark : one]);
    const wanted = scheme === "always" || (scheme === "first" && given.original(0, 1)[0] === 0);
    const text = wanted && marked.characters[0] !== mark ? marked.prepended(mark) : marked;
    const starts = text.characters.flatMap((one, at) => (at === 0 || (split && one === mark) ? [at] : []));
    return starts.map((start, n) => text.slice(start, starts[n + 1]));
  };
}
