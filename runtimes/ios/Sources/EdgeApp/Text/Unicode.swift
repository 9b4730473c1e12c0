/// What the tokenizer must know of characters. Swift's own properties are of another version of Unicode on each
/// system; the tables are what the tokenizers library answers.
struct CharacterKind: OptionSet {
  let rawValue: UInt16

  static let cleaned = Self(rawValue: UnicodeTables.cleaned)
  static let blank = Self(rawValue: UnicodeTables.blank)
  static let mark = Self(rawValue: UnicodeTables.mark)
  static let chinese = Self(rawValue: UnicodeTables.chinese)
  static let space = Self(rawValue: UnicodeTables.space)
  static let punctuation = Self(rawValue: UnicodeTables.punctuation)
  static let letter = Self(rawValue: UnicodeTables.letter)
  static let number = Self(rawValue: UnicodeTables.number)
  static let gap = Self(rawValue: UnicodeTables.gap)
  static let word = Self(rawValue: UnicodeTables.word)
}

extension Unicode.Scalar {
  /// Whether the character has any of these.
  func isAny(_ kinds: CharacterKind) -> Bool {
    UnicodeTables.flagsValue[last(upTo: value, in: UnicodeTables.flagsFrom)] & kinds.rawValue != 0
  }

  /// The class that orders marks after a letter; 0: not moved.
  var orderOfMark: UInt16 {
    value < 0x300 ? 0 : UnicodeTables.combiningClassValue[last(upTo: value, in: UnicodeTables.combiningClassFrom)]
  }

  /// Canonical decomposition, in full; the character itself where it has none.
  var decomposed: Characters {
    let syllables: Range<UInt32> = 0xAC00..<0xAC00 + 11172
    guard syllables.contains(value) else {
      guard value >= 0x80, let parts = UnicodeTables.decomposition.of(value) else { return [self] }
      return parts
    }
    let (lead, vowel, tail): (UInt32, UInt32, UInt32) = (0x1100, 0x1161, 0x11A7)
    let (vowels, tails): (UInt32, UInt32) = (21, 28)
    let syllable = value - syllables.lowerBound
    let parts = [lead + syllable / (vowels * tails), vowel + syllable / tails % vowels, tail + syllable % tails]
    return parts.filter { $0 != tail }.compactMap(Unicode.Scalar.init)
  }

  var lowercased: Characters {
    UnicodeTables.lowercase.of(value) ?? [self]
  }
}

/// What some characters become: `count` characters of the pool from `start` on.
struct CharacterMapping: Sendable {
  let from: [UInt32]
  let start: [UInt16]
  let count: [UInt16]

  func of(_ value: UInt32) -> Characters? {
    let place = last(upTo: value, in: from)
    guard place >= 0, from[place] == value else { return nil }
    let first = Int(start[place])
    return UnicodeTables.pool[first..<first + Int(count[place])].compactMap(Unicode.Scalar.init)
  }
}

/// The place of the last number that is not above the value, in ascending order; -1: all are above.
private func last(upTo value: UInt32, in numbers: [UInt32]) -> Int {
  var (low, high) = (0, numbers.count)
  while low < high {
    let middle = (low + high) / 2
    if numbers[middle] <= value { low = middle + 1 } else { high = middle }
  }
  return low - 1
}
