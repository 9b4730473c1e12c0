// What each task makes of a model's outputs.

import { highest, Model, softmax } from "./model.js";
import type { Span } from "./text/aligned.js";
import { spansOf, tokensOf, wordsOf } from "./words.js";

export interface Ranked {
  label: string;
  score: number;
}

/** `start` and `end` are places in the string, as `slice` takes them. */
export interface Tagged {
  label: string;
  start: number;
  end: number;
  text: string;
  score: number;
}

export interface Answer {
  text: string;
  start: number;
  end: number;
  score: number;
}

export class Classifier extends Model {
  async classify(text: string, topK: number): Promise<Ranked[]> {
    const shares = softmax((await this.logits(this.encode(text)))[0]!);
    const ranked = shares.map((score, at) => ({ label: this.settings.labels[at]!, score }));
    return ranked.sort((one, other) => other.score - one.score).slice(0, topK);
  }

  protected override said(text: string): Promise<Ranked[]> {
    return this.classify(text, 3);
  }
}

export class Tagger extends Model {
  async tag(text: string): Promise<Tagged[]> {
    const encoding = this.encode(text);
    const logits = await this.logits(encoding);
    const words = wordsOf(text);
    const { labels } = this.settings;
    const outside = Math.max(labels.indexOf("O"), 0);
    const tags: string[] = [];
    const scores: number[] = [];
    for (const place of tokensOf(encoding, words)) {
      // A word that was cut off has no logits: all classes are equally likely there.
      const found = place ? logits[place[0]]! : labels.map(() => 0);
      tags.push(labels[found.some((one) => one !== 0) ? highest(found) : outside]!);
      scores.push(Math.max(...softmax(found)));
    }
    return spansOf(tags).map(({ label, first, last }) => {
      const start = words[first]![0];
      const end = words[last]![1];
      const inside = scores.slice(first, last + 1);
      const score = inside.reduce((sum, one) => sum + one, 0) / inside.length;
      return { label, start, end, text: text.slice(start, end), score };
    });
  }

  protected override said(text: string): Promise<Tagged[]> {
    return this.tag(text);
  }
}

export class Embedder extends Model {
  async embed(text: string): Promise<number[]> {
    return (await this.logits(this.encode(text)))[0]!;
  }

  protected override said(text: string): Promise<number[]> {
    return this.embed(text);
  }
}

// What Python's str.split() splits at.
const BLANKS = /[\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+/;

export class Answerer extends Model {
  /**
   * A context longer than the model reads goes through it in windows that overlap; the span with the largest sum of start
   * and end logit wins, of at most `longest_answer` words.
   */
  async answer(asked: string, context: string): Promise<Answer> {
    const { max_length: limit, may_be_none: mayBeNone, longest_answer: longest } = this.settings;
    const { question, size } = this.cut(asked.split(BLANKS).filter(Boolean).join(" "), limit >> 1);
    const words = wordsOf(context);
    const none = { sum: Infinity, share: 0 };
    let best = -Infinity;
    let found: Answer = { text: "", start: 0, end: 0, score: 0 };
    for (const [first, last] of this.windows(context, words, limit - this.tokenizer.special(true) - size)) {
      const window = words.length ? context.slice(words[first]![0], words[last]![1]) : "";
      const { starts, ends } = await this.units(question, window);
      const startShares = softmax(starts);
      const endShares = softmax(ends);
      if (starts[0]! + ends[0]! < none.sum) {
        none.sum = starts[0]! + ends[0]!;
        none.share = startShares[0]! * endShares[0]!;
      }
      for (let start = 1; start < starts.length; start += 1) {
        for (let stop = start; stop < Math.min(start + longest, starts.length); stop += 1) {
          const sum = starts[start]! + ends[stop]!;
          if (sum <= best) continue;
          best = sum;
          const from = words[first + start - 1]![0];
          const to = words[first + stop - 1]![1];
          found = { text: context.slice(from, to), start: from, end: to, score: startShares[start]! * endShares[stop]! };
        }
      }
    }
    if (best === -Infinity || (mayBeNone && none.sum > best)) return { text: "", start: 0, end: 0, score: none.share };
    return found;
  }

  /** A golden text is a question, a line, and a window of a context. */
  private halves(text: string): [question: string, context: string] {
    const at = text.indexOf("\n");
    return at < 0 ? [text, ""] : [text.slice(0, at), text.slice(at + 1)];
  }

  protected override said(text: string): Promise<Answer> {
    return this.answer(...this.halves(text));
  }

  protected override encodeGolden(text: string): ReturnType<Model["encode"]> {
    return this.encode(...this.halves(text));
  }

  /** Start and end logits of [CLS], then of each word that was not cut off. */
  private async units(question: string, window: string): Promise<{ starts: number[]; ends: number[] }> {
    const encoding = this.encode(question, window);
    const logits = await this.logits(encoding);
    const places = tokensOf(encoding, wordsOf(window), 1);
    while (places.length && places.at(-1) === null) places.pop();
    let before: [number, number] = [0, 0]; // whose tokens a word without any borrows
    const units = [before, ...places.map((place) => (before = place ?? before))];
    return { starts: units.map(([first]) => logits[first]![0]!), ends: units.map(([, last]) => logits[last]![1]!) };
  }

  /** The text cut to so many tokens, and how many it has. */
  private cut(text: string, limit: number): { question: string; size: number } {
    const { offsets } = this.tokenizer.bare(text);
    if (offsets.length <= limit) return { question: text, size: offsets.length };
    return { question: text.slice(0, offsets[limit - 1]![1]), size: limit };
  }

  /**
   * First and last word of each window: as many words as `room` tokens hold, but one at least. The next begins at most
   * `max_length / overlap` tokens before its end, and at most half of it.
   */
  private windows(context: string, words: readonly Span[], room: number): [first: number, last: number][] {
    const { max_length: limit, overlap } = this.settings;
    const { offsets } = this.tokenizer.bare(context);
    const begins: number[] = []; // of each word, in tokens; a word without tokens takes no room
    const ends: number[] = [];
    let token = 0;
    for (const place of tokensOf({ offsets, sequences: offsets.map(() => 0) }, words)) {
      begins.push(place ? place[0] : token);
      token = place ? place[1] + 1 : token;
      ends.push(token);
    }
    const shared = Math.min(Math.floor(limit / overlap), Math.max(room >> 1, 0));
    const found: [number, number][] = [];
    for (let first = 0; ; ) {
      const stop = Math.max(words.length ? below(ends, begins[first]! + room + 1) : 0, first + 1);
      found.push([first, stop - 1]);
      if (stop >= words.length) return found;
      first = Math.min(Math.max(below(begins, ends[stop - 1]! - shared), first + 1), stop);
    }
  }
}

/** How many of the ascending values are less than `limit`. */
function below(values: readonly number[], limit: number): number {
  const at = values.findIndex((one) => one >= limit);
  return at < 0 ? values.length : at;
}
