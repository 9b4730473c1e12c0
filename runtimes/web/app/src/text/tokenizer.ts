// Texts to token ids and back to places: the ids and offsets of Python's `tokenizers`, offsets in UTF-16 units.
//
// Words are made by parts.ts, the model (WordPiece, BPE, Unigram) is that of `@huggingface/tokenizers`, word by word; where
// the tokens of a word lie in it is seen by their texts. Texts that are too long are cut on the right, the longer first.

import { Tokenizer as Library } from "@huggingface/tokenizers";

import { BundleError, told } from "../errors.js";
import { type AddedToken, AddedTokens, type Piece } from "./added.js";
import { Aligned, inUnits, type Span } from "./aligned.js";
import { type Normalizer, normalizersOf, type Part, type PreTokenizer, preTokenizersOf } from "./parts.js";
import { FLAGS, has } from "./unicode.js";

export interface Encoding {
  ids: number[];
  types: number[];
  offsets: Span[];
  sequences: (number | null)[]; // 0 or 1: of which text; null: a special token
}

interface Token {
  id: number;
  text: string;
  at: Span;
}

/** A special token, or the place of a text. */
type Slot = { id: number; type: number } | { sequence: number; type: number };

type File = Record<string, unknown> & { model: Part };

export class Tokenizer {
  private readonly model: NonNullable<Library["model"]>;
  private readonly normalizers: Normalizer[];
  private readonly preTokenizers: PreTokenizer[];
  private readonly raw: AddedTokens;
  private readonly normalized: AddedTokens;
  private readonly slots: { single: Slot[]; pair: Slot[] };
  private readonly trimming: { prefix: boolean } | null;
  private readonly prefix: string;

  /** Of the content of a tokenizer.json; throws BundleError for one that is not run here. */
  constructor(file: File) {
    const { model } = file;
    if (model["byte_fallback"]) throw new BundleError("tokenizer.json: a model with byte_fallback is not run in a browser");
    try {
      const rest = { normalizer: null, pre_tokenizer: null, post_processor: null, decoder: null, added_tokens: [] };
      this.model = new Library({ ...rest, model }, {}).model!;
    } catch (error) {
      throw new BundleError(`tokenizer.json: ${told(error)}`);
    }
    this.prefix = (model["continuing_subword_prefix"] as string | undefined) ?? "";
    this.normalizers = normalizersOf((file["normalizer"] as Part | undefined) ?? null);
    this.preTokenizers = preTokenizersOf((file["pre_tokenizer"] as Part | undefined) ?? null);
    // Where two are the same text, the special one is found.
    const added = ((file["added_tokens"] as AddedToken[] | undefined) ?? []).slice();
    added.sort((one, other) => Number(other.special ?? false) - Number(one.special ?? false));
    this.raw = new AddedTokens(added.filter((one) => !one.normalized));
    this.normalized = new AddedTokens(
      added.filter((one) => one.normalized).map((one) => ({ ...one, content: this.normal(Aligned.of(one.content)).text })),
    );
    const processor = (file["post_processor"] as Part | undefined) ?? null;
    this.slots = slotsOf(processor);
    this.trimming = trimmingOf(processor);
  }

  /** One text, or a pair, with special tokens, cut to `length` tokens. */
  encode(text: string, length = Infinity, other?: string): Encoding {
    const texts = other === undefined ? [this.tokens(text)] : [this.tokens(text), this.tokens(other)];
    const slots = texts.length === 1 ? this.slots.single : this.slots.pair;
    const special = slots.filter((one) => "id" in one).length;
    if (length < special) throw new BundleError(`${length} tokens do not hold the ${special} special ones`);
    cut(texts, length - special);
    if (this.trimming) for (const one of texts) trim(one, this.trimming.prefix);
    const found: Encoding = { ids: [], types: [], offsets: [], sequences: [] };
    const places = [inUnits(text), inUnits(other ?? "")];
    for (const slot of slots) {
      const tokens = "id" in slot ? [{ id: slot.id, at: [0, 0] as const }] : texts[slot.sequence]!;
      for (const { id, at } of tokens) {
        found.ids.push(id);
        found.types.push(slot.type);
        found.offsets.push("id" in slot ? at : places[slot.sequence]!(at));
        found.sequences.push("id" in slot ? null : slot.sequence);
      }
    }
    return found;
  }

  /** One text without special tokens: its ids, and where they lie. */
  bare(text: string): { ids: number[]; offsets: Span[] } {
    const tokens = this.tokens(text);
    if (this.trimming) trim(tokens, this.trimming.prefix);
    return { ids: tokens.map((one) => one.id), offsets: tokens.map((one) => one.at).map(inUnits(text)) };
  }

  /** How many special tokens there are beside one text, or a pair. */
  special(pair: boolean): number {
    return this.slots[pair ? "pair" : "single"].filter((one) => "id" in one).length;
  }

  private normal(text: Aligned): Aligned {
    return this.normalizers.reduce((found, normalizer) => normalizer(found), text);
  }

  private pieces(text: string): Piece[] {
    return this.raw
      .split(Aligned.of(text))
      .flatMap((piece) => (piece.token ? [piece] : this.normalized.split(this.normal(piece.text))));
  }

  private tokens(text: string): Token[] {
    return this.pieces(text).flatMap((piece): Token[] => {
      if (piece.token) {
        const { content, id } = piece.token;
        return [{ id: this.model.tokens_to_ids.get(content) ?? id, text: piece.text.text, at: piece.text.original() }];
      }
      const words = this.preTokenizers.reduce((found, one) => found.flatMap((word) => (word.length ? one(word) : [])), [piece.text]);
      return words.flatMap((word) => this.ofWord(word));
    });
  }

  /** What the model makes of a word, in the order of its characters. */
  private ofWord(word: Aligned): Token[] {
    if (word.length === 0) return [];
    const { text } = word;
    const starts = new Map<number, number>(); // characters by UTF-16 units
    let units = 0;
    word.characters.forEach((one, at) => {
      starts.set(units, at);
      units += one.length;
    });
    starts.set(units, word.length);
    const tokens = this.model.encode([text]);
    const surfaces = tokens.map((one, n) => (n && this.prefix && one.startsWith(this.prefix) ? one.slice(this.prefix.length) : one));
    const found: Token[] = [];
    let at = 0;
    for (let n = 0; n < tokens.length; n += 1) {
      const id = this.model.tokens_to_ids.get(tokens[n]!);
      const unknown = id === undefined || (tokens[n] === this.model.unk_token && !text.startsWith(surfaces[n]!, at));
      if (!unknown) at = Math.max(at, text.indexOf(surfaces[n]!, at)); // what the model has no token for was left out
      let end = at + surfaces[n]!.length;
      if (unknown) {
        // Up to the next token that is known; unknown ones that follow each other are one where the model fuses them.
        if (this.model.fuse_unk) while (n + 1 < tokens.length && !this.model.tokens_to_ids.has(tokens[n + 1]!)) n += 1;
        const next = n + 1 < tokens.length ? text.indexOf(surfaces[n + 1]!, at + 1) : text.length;
        end = next < 0 ? text.length : next;
      }
      const place = word.original(starts.get(at)!, starts.get(end)!);
      found.push({ id: unknown ? this.model.unk_token_id! : id, text: text.slice(at, end), at: place });
      at = end;
    }
    return found;
  }
}

// --- after the model ---

/** The shorter text is cut only where half of the room is too little for it. */
function cut(texts: Token[][], most: number): void {
  const total = texts.reduce((sum, one) => sum + one.length, 0);
  if (total <= most) return;
  const [shorter, longer] = texts.length === 1 ? [0, most] : lengths(texts.map((one) => one.length), most);
  const swapped = texts.length > 1 && texts[0]!.length > texts[1]!.length;
  texts[0]!.length = Math.min(texts[0]!.length, swapped || texts.length === 1 ? longer : shorter);
  if (texts.length > 1) texts[1]!.length = Math.min(texts[1]!.length, swapped ? shorter : longer);
}

function lengths(given: readonly number[], most: number): [number, number] {
  const shorter = Math.min(...given);
  const longer = shorter > most ? shorter : Math.max(shorter, most - shorter);
  return shorter + longer <= most ? [shorter, longer] : [most >> 1, (most >> 1) + (most % 2)];
}

const isGap = (character: string): boolean => character === "\u0120" || has(character, FLAGS.space);

/** Spaces at a token's ends are no part of it. */
function trim(tokens: Token[], prefix: boolean): void {
  tokens.forEach((token, n) => {
    const characters = [...token.text];
    let before = characters.findIndex((one) => !isGap(one));
    let after = [...characters].reverse().findIndex((one) => !isGap(one));
    if (before < 0) before = after = characters.length;
    let [start, end] = token.at;
    // A single space that starts a text is the one that was put before it: it has no place in the original.
    if (prefix && before === 1 && (n === 0 || start === 0)) before = 0;
    if (before > 0) start = Math.min(start + before, end);
    if (after > 0 && end >= after) end = Math.max(end - after, start);
    token.at = [start, end];
  });
}

const ALONE: Slot[] = [{ sequence: 0, type: 0 }];

function slotsOf(part: Part | null): { single: Slot[]; pair: Slot[] } {
  switch (part?.type) {
    case undefined:
    case "ByteLevel":
      return { single: ALONE, pair: [...ALONE, { sequence: 1, type: 1 }] };
    case "Sequence": {
      const inner = part["processors"] as Part[];
      return slotsOf(inner.filter((one) => one.type !== "ByteLevel").at(-1) ?? null);
    }
    case "TemplateProcessing":
      return { single: templateOf(part, "single"), pair: templateOf(part, "pair") };
    case "BertProcessing":
    case "RobertaProcessing": {
      const second = part.type === "BertProcessing" ? 1 : 0;
      const id = (name: string): number => (part[name] as [string, number])[1];
      const single = [{ id: id("cls"), type: 0 }, ...ALONE, { id: id("sep"), type: 0 }];
      const between = second ? [] : [{ id: id("sep"), type: 0 }];
      return { single, pair: [...single, ...between, { sequence: 1, type: second }, { id: id("sep"), type: second }] };
    }
    default:
      throw new BundleError(`tokenizer.json: the post-processor ${part?.type} is not run in a browser`);
  }
}

function templateOf(part: Part, name: "single" | "pair"): Slot[] {
  type Step = Record<"Sequence" | "SpecialToken", { id: string; type_id: number } | undefined>;
  const special = part["special_tokens"] as Record<string, { ids: number[] }>;
  return (part[name] as Step[]).flatMap(({ Sequence: sequence, SpecialToken: token }): Slot[] => {
    if (sequence) return [{ sequence: sequence.id === "A" ? 0 : 1, type: sequence.type_id }];
    return special[token!.id]!.ids.map((id) => ({ id, type: token!.type_id }));
  });
}

function trimmingOf(part: Part | null): { prefix: boolean } | null {
  if (part?.type === "Sequence") return (part["processors"] as Part[]).map(trimmingOf).find((one) => one !== null) ?? null;
  if (part?.type !== "ByteLevel" && part?.type !== "RobertaProcessing") return null;
  if (!((part["trim_offsets"] as boolean | undefined) ?? true)) return null;
  return { prefix: (part["add_prefix_space"] as boolean | undefined) ?? true };
}
