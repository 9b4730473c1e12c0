// Tokens that are found in the text itself, before the model sees it: [MASK] in a sentence is one token.

import type { Aligned } from "./aligned.js";
import { FLAGS, has } from "./unicode.js";

export interface AddedToken {
  id: number;
  content: string;
  single_word?: boolean; // not inside a word
  lstrip?: boolean; // takes the blanks before it along
  rstrip?: boolean;
  normalized?: boolean; // is looked for in the normalized text
  special?: boolean;
}

/** A part of a text, and the token that it is where it is one. */
export interface Piece {
  text: Aligned;
  token?: AddedToken;
}

export class AddedTokens {
  private readonly tokens = new Map<string, { token: AddedToken; characters: string[] }[]>(); // by their first character

  /** Of two with one content the first is found; of two at one place the longer. */
  constructor(tokens: readonly AddedToken[]) {
    const all = tokens.map((token) => ({ token, characters: [...token.content] }));
    for (const one of all.sort((one, other) => other.characters.length - one.characters.length)) {
      const [first] = one.characters;
      if (first !== undefined) this.tokens.set(first, [...(this.tokens.get(first) ?? []), one]);
    }
  }

  /** The text in parts that are not empty, in order. */
  split(text: Aligned): Piece[] {
    const { characters } = text;
    const blank = (at: number): boolean => at < characters.length && has(characters[at]!, FLAGS.space);
    const word = (at: number): boolean => at >= 0 && at < characters.length && has(characters[at]!, FLAGS.word);
    const pieces: Piece[] = [];
    let done = 0; // up to here the text is in pieces
    for (let at = 0; at < characters.length; ) {
      const starting = this.tokens.get(characters[at]!);
      const found = starting?.find((one) => one.characters.every((character, n) => characters[at + n] === character));
      if (!found) {
        at += 1;
        continue;
      }
      let start = at;
      let end = at + found.characters.length;
      at = end;
      const { token } = found;
      if (token.single_word && (word(start - 1) || word(end))) continue;
      if (token.lstrip) while (start > done && blank(start - 1)) start -= 1;
      if (token.rstrip) while (blank(end)) end += 1;
      if (done < start) pieces.push({ text: text.slice(done, start) });
      pieces.push({ text: text.slice(start, end), token });
      done = end;
    }
    if (done < characters.length) pieces.push({ text: text.slice(done) });
    return pieces;
  }
}
