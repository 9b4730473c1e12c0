struct AddedToken: Sendable {
  var id: Int
  var content: Characters
  var singleWord = false  // not inside a word
  var lstrip = false  // takes the blanks before it along
  var rstrip = false
  var normalized = false  // is looked for in the normalized text
}

/// Tokens that are found in the text itself, before the model sees it: [MASK] in a sentence is one token.
struct AddedTokens: Sendable {
  private let tokens: [AddedToken]  // the longest first
  private let firsts: Set<Unicode.Scalar>

  /// Of two with one content the first is found.
  init(_ tokens: [AddedToken] = []) {
    let inOrder = tokens.enumerated().filter { !$0.element.content.isEmpty }
    self.tokens = inOrder.sorted { ($1.element.content.count, $0.offset) < ($0.element.content.count, $1.offset) }
      .map(\.element)
    firsts = Set(self.tokens.map { $0.content[0] })
  }

  /// The text in parts that are not empty, in order; an id where a part is a token.
  func split(_ aligned: AlignedText) -> [(text: AlignedText, token: Int?)] {
    let text = aligned.text
    var pieces: [(text: AlignedText, token: Int?)] = []
    var done = 0  // up to here the text is in pieces
    var place = 0
    while place < text.count {
      guard let token = longest(in: text, at: place) else {
        place += 1
        continue
      }
      var match = place..<place + token.content.count
      place = match.upperBound
      if token.singleWord, isInsideWord(text, match) { continue }
      if token.lstrip {
        while match.lowerBound > done, text[match.lowerBound - 1].isAny(.space) {
          match = match.lowerBound - 1..<match.upperBound
        }
      }
      if token.rstrip {
        while match.upperBound < text.count, text[match.upperBound].isAny(.space) {
          match = match.lowerBound..<match.upperBound + 1
        }
      }
      if done < match.lowerBound { pieces.append((aligned.slice(done..<match.lowerBound), nil)) }
      pieces.append((aligned.slice(match), token.id))
      done = match.upperBound
    }
    if done < text.count { pieces.append((aligned.slice(done..<text.count), nil)) }
    return pieces
  }

  private func longest(in text: Characters, at place: Int) -> AddedToken? {
    guard firsts.contains(text[place]) else { return nil }
    return tokens.first { text.has($0.content, at: place) }
  }

  private func isInsideWord(_ text: Characters, _ match: Range<Int>) -> Bool {
    let before = match.lowerBound > 0 && text[match.lowerBound - 1].isAny(.word)
    let after = match.upperBound < text.count && text[match.upperBound].isAny(.word)
    return before || after
  }
}
