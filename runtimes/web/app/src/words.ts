// The words of a text, where they lie among its tokens, and spans of tagged words.

import { Aligned, inUnits, type Span } from "./text/aligned.js";
import { splitAsBert } from "./text/parts.js";
import type { Encoding } from "./text/tokenizer.js";

/** Where each word lies: split at white space and at punctuation, each mark a word, as BERT does. */
export function wordsOf(text: string): Span[] {
  return splitAsBert(Aligned.of(text))
    .map((word) => word.original())
    .map(inUnits(text));
}

/** First and last token that overlap each word; null where none does. Both are in the order of the text. */
export function tokensOf(
  { offsets, sequences }: Pick<Encoding, "offsets" | "sequences">,
  words: readonly Span[],
  sequence = 0,
): ([first: number, last: number] | null)[] {
  const tokens = offsets.flatMap(([start, end], index) => (sequences[index] === sequence && end > start ? [{ index, start, end }] : []));
  let at = 0;
  return words.map(([start, end]) => {
    while (at < tokens.length && tokens[at]!.end <= start) at += 1;
    let stop = at;
    while (stop < tokens.length && tokens[stop]!.start < end) stop += 1;
    return stop > at ? [tokens[at]!.index, tokens[stop - 1]!.index] : null;
  });
}

/** Spans of BIO tags: one begins at B, and at an I that does not continue a span of its label. */
export function spansOf(tags: readonly string[]): { label: string; first: number; last: number }[] {
  const found: { label: string; first: number; last: number }[] = [];
  let before: string | null = null;
  tags.forEach((tag, word) => {
    const dash = tag.indexOf("-");
    const kind = dash < 0 ? tag : tag.slice(0, dash);
    const label = dash < 0 ? "" : tag.slice(dash + 1);
    if (kind === "I" && label === before) found.at(-1)!.last = word;
    else if (kind !== "O") found.push({ label, first: word, last: word });
    before = kind === "O" ? null : label;
  });
  return found;
}
