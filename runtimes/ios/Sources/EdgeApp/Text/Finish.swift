/// After the model: cutting to a length, and the special tokens around a text or a pair.
enum Truncation: String {
  case longestFirst = "longest_first"
  case onlyFirst = "only_first"
  case onlySecond = "only_second"

  /// Cuts ends off so that both together have at most `most` tokens.
  func cut(_ first: inout [Token], _ second: inout [Token]?, to most: Int) throws {
    let surplus = first.count + (second?.count ?? 0) - most
    guard surplus > 0 else { return }
    if most == 0 {
      first = []
      second = second.map { _ in [] }
      return
    }
    switch self {
    case .onlyFirst:
      first = try Self.shortened(first, by: surplus)
    case .onlySecond:
      guard let other = second else { throw BundleError("there is no second text to be truncated") }
      second = try Self.shortened(other, by: surplus)
    case .longestFirst:
      guard let other = second else {
        first.removeLast(surplus)
        return
      }
      let lengths = Self.lengths(first.count, other.count, most)
      first = Array(first.prefix(lengths.first))
      second = Array(other.prefix(lengths.second))
    }
  }

  private static func shortened(_ tokens: [Token], by surplus: Int) throws -> [Token] {
    guard tokens.count > surplus else {
      throw BundleError("the text to be truncated is too short to make the pair fit")
    }
    return Array(tokens.dropLast(surplus))
  }

  /// What longest-first leaves: the shorter text is cut only where half of the room is too little for it.
  private static func lengths(_ first: Int, _ second: Int, _ most: Int) -> (first: Int, second: Int) {
    var shorter = min(first, second)
    var longer = shorter > most ? shorter : max(shorter, most - shorter)
    if shorter + longer > most {
      shorter = most / 2
      longer = shorter + most % 2
    }
    return first > second ? (longer, shorter) : (shorter, longer)
  }
}

/// A place of a template: the tokens of a text, or special tokens.
enum Slot: Sendable {
  case text(Int, type: Int)  // 0 or 1
  case special([Int], type: Int)

  var isSpecial: Bool {
    if case .special = self { true } else { false }
  }
}

struct PostProcessor: Sendable {
  var trimming: Trimming?
  var single: [Slot] = [.text(0, type: 0)]
  var pair: [Slot] = [.text(0, type: 0), .text(1, type: 1)]
}

extension [Slot] {
  /// How many special tokens it adds.
  var added: Int {
    reduce(0) { sum, slot in
      if case .special(let ids, _) = slot { sum + ids.count } else { sum }
    }
  }
}

/// Takes the blanks out of the offsets, as ByteLevel and RoBERTa do with `trim_offsets`.
struct Trimming: Sendable {
  let addPrefixSpace: Bool

  func trim(_ tokens: inout [Token]) {
    for index in tokens.indices {
      let text = tokens[index].text
      let at = tokens[index].at
      var before = text.firstIndex { !isGap($0) } ?? text.count
      let after = text.count - 1 - (text.lastIndex { !isGap($0) } ?? -1)
      var start = at.lowerBound
      var end = at.upperBound
      if before > 0 {
        // A single space that starts a text is the one that was put before it: it has no place in the original.
        if addPrefixSpace, before == 1, index == 0 || start == 0 { before = 0 }
        start = min(start + before, end)
      }
      if after > 0, end >= after { end = max(end - after, start) }
      tokens[index].at = start..<end
    }
  }

  /// A space as ByteLevel writes it, or one.
  private func isGap(_ character: Unicode.Scalar) -> Bool {
    character == "\u{120}" || character.isAny(.space)
  }
}
