/// BERT's normalizer; the file's null for `strip_accents` means: as lowercase.
struct BertNormalizer: Normalizer {
  var cleanText = true
  var handleChineseCharacters = true
  var stripAccents = true
  var lowercase = true

  func normalize(_ text: inout AlignedText) {
    if cleanText {
      text.keep { !$0.isAny(.cleaned) }
      text.map { $0.isAny(.blank) ? " " : $0 }
    }
    if handleChineseCharacters {
      text.expand { character, into in
        if character.isAny(.chinese) { into += [" ", character, " "] } else { into.append(character) }
      }
    }
    if stripAccents {
      decompose(&text)
      text.keep { !$0.isAny(.mark) }
    }
    if lowercase {
      text.expand { character, into in into += character.lowercased }
    }
  }

  private typealias Part = (character: Unicode.Scalar, inserted: Bool, order: UInt16)

  private func decompose(_ text: inout AlignedText) {
    var parts: [Part] = []
    for character in text.text {
      for (number, part) in character.decomposed.enumerated() {
        parts.append((part, number > 0, part.orderOfMark))
      }
    }
    putInOrder(&parts)
    text.replace(parts.map { ($0.character, $0.inserted) })
  }

  /// Marks after a letter stand in the order of their classes, those of one class as they came.
  private func putInOrder(_ parts: inout [Part]) {
    var start = 0
    while start < parts.count {
      guard parts[start].order != 0 else {
        start += 1
        continue
      }
      let end: Int = parts[start...].firstIndex { $0.order == 0 } ?? parts.count
      let sorted = parts[start..<end].enumerated().sorted { ($0.element.order, $0.offset) < ($1.element.order, $1.offset) }
      parts.replaceSubrange(start..<end, with: sorted.map(\.element))
      start = end
    }
  }
}

/// Splits at blanks and around punctuation.
struct BertPreTokenizer: PreTokenizer {
  func split(_ text: AlignedText, into parts: inout [AlignedText]) {
    for word in Self.words(text.text) { parts.append(text.slice(word)) }
  }

  static func words(_ text: Characters) -> [Range<Int>] {
    var found: [Range<Int>] = []
    var start = 0  // of the word under way
    for (place, character) in text.enumerated() {
      let punctuation = character.isAny(.punctuation)
      guard punctuation || character.isAny(.space) else { continue }
      if start < place { found.append(start..<place) }
      if punctuation { found.append(place..<place + 1) }
      start = place + 1
    }
    if start < text.count { found.append(start..<text.count) }
    return found
  }
}

struct WordPiece: TokenModel {
  private let vocabulary: Vocabulary
  private let unknown: (id: Int, text: Characters)
  private let prefix: Characters
  private let longestWord: Int
  private let longestToken: Int  // longer pieces need no look-up

  init(vocabulary: Vocabulary, unknown: Characters, prefix: Characters, longestWord: Int) throws {
    guard let id = vocabulary[unknown] else {
      throw BundleError("unk_token is not in the vocabulary: \(unknown.string)")
    }
    self.vocabulary = vocabulary
    self.unknown = (id, unknown)
    self.prefix = prefix
    self.longestWord = longestWord
    longestToken = vocabulary.keys.map(\.count).max() ?? 0
  }

  func id(of token: Characters) -> Int? { vocabulary[token] }

  func tokenize(_ word: Characters, into tokens: inout [Token]) {
    let before = tokens.count
    var start = 0
    var known = word.count <= longestWord
    while known && start < word.count {
      if let token = longest(of: word, from: start) {
        start = token.at.upperBound
        tokens.append(token)
      } else {
        known = false
      }
    }
    guard !known else { return }
    tokens.removeSubrange(before...)  // one unknown piece makes the whole word unknown
    tokens.append(Token(id: unknown.id, text: unknown.text, at: 0..<word.count))
  }

  /// The longest token of the vocabulary that the word goes on with.
  private func longest(of word: Characters, from start: Int) -> Token? {
    var piece = start == 0 ? [] : prefix
    let ahead = piece.count
    piece += word[start..<min(word.count, start + max(0, longestToken - ahead))]
    while piece.count > ahead {
      if let id = vocabulary[piece] { return Token(id: id, text: piece, at: start..<start + piece.count - ahead) }
      piece.removeLast()
    }
    return nil
  }
}
