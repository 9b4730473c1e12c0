// A text under way from what was written to what the model reads, each character with its place in the original.

/** From `start` up to `end`. */
export type Span = readonly [start: number, end: number];

/** A character in place of the next old one, or in addition: then it shares the place of the old one before. */
export interface Change {
  character: string;
  inserted: boolean;
}

/** Characters of `text` as UTF-16 units, which is what JavaScript's strings count. */
export function inUnits(text: string): (span: Span) => Span {
  const units = [0];
  for (const one of text) units.push(units.at(-1)! + one.length);
  return ([start, end]) => [units[start]!, units[end]!];
}

export class Aligned {
  private constructor(
    readonly characters: readonly string[],
    private readonly places: readonly Span[],
  ) {}

  /** A whole text; half a surrogate pair reads as U+FFFD. Places count characters, not UTF-16 units. */
  static of(text: string): Aligned {
    const characters = Array.from(text, (one) => (one.length === 1 && one >= "\ud800" && one <= "\udfff" ? "\ufffd" : one));
    return new Aligned(
      characters,
      characters.map((_, at) => [at, at + 1]),
    );
  }

  get length(): number {
    return this.characters.length;
  }

  get text(): string {
    return this.characters.join("");
  }

  slice(start: number, end = this.length): Aligned {
    return new Aligned(this.characters.slice(start, end), this.places.slice(start, end));
  }

  /** Where these characters (at least one) lie in the original. */
  original(start = 0, end = this.length): Span {
    return [this.places[start]![0], this.places[end - 1]![1]];
  }

  replaced(changes: readonly Change[]): Aligned {
    let taken = 0;
    const places = changes.map(({ inserted }): Span => {
      if (!inserted) return this.places[taken++]!;
      return taken === 0 ? [0, 0] : this.places[taken - 1]!;
    });
    return new Aligned(
      changes.map((one) => one.character),
      places,
    );
  }

  /** Each character becomes those that `function` gives: none, or some that share its place. */
  expanded(change: (character: string) => readonly string[]): Aligned {
    const characters: string[] = [];
    const places: Span[] = [];
    this.characters.forEach((one, at) => {
      for (const part of change(one)) {
        characters.push(part);
        places.push(this.places[at]!);
      }
    });
    return new Aligned(characters, places);
  }

  /** Before the first character, whose place it takes; nothing where the text is empty. */
  prepended(before: string): Aligned {
    if (this.length === 0) return this;
    const more = [...before];
    return new Aligned([...more, ...this.characters], [...more.map(() => this.places[0]!), ...this.places]);
  }

  /** Each match (`match` gives its length at a place, or 0) becomes `content`, at the place of its last character. */
  substituted(match: (characters: readonly string[], at: number) => number, content: string): Aligned {
    const characters: string[] = [];
    const places: Span[] = [];
    for (let at = 0; at < this.length; ) {
      const length = match(this.characters, at);
      const end = at + Math.max(length, 1);
      for (const one of length ? content : this.characters[at]!) {
        characters.push(one);
        places.push(this.places[end - 1]!);
      }
      at = end;
    }
    return new Aligned(characters, places);
  }
}
