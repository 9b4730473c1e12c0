/// What the model reads of a text.
struct Encoding: Equatable, Sendable {
  var ids: [Int] = []
  var offsets: [Range<Int>] = []  // in code points of the text, or of the pair's own text; of special tokens 0..<0
  var sequences: [Int?] = []  // of which text: 0 or 1; nil: put there by the post-processor
  var typeIds: [Int] = []
}

/// A tokenizer of the Hugging Face format tokenizer.json: the ids and offsets that the Python package gives.
///
/// What the file says on truncation and padding is left to the caller: it is how the file was last used, not what the
/// tokenizer is.
struct Tokenizer: Sendable {
  var addedRaw = AddedTokens()  // found in the text as written
  var addedNormalized = AddedTokens()  // found after normalizing
  var normalizers: [any Normalizer] = []
  var preTokenizers: [any PreTokenizer] = []
  var model: any TokenModel
  var postProcessor = PostProcessor()

  /// `maxLength` counts the special tokens too; nil: the whole text.
  func encode(
    _ text: String, pair second: String? = nil, maxLength: Int? = nil, truncation: Truncation = .longestFirst,
    withSpecials: Bool = true
  ) throws -> Encoding {
    var slots = second == nil ? postProcessor.single : postProcessor.pair
    if !withSpecials { slots.removeAll { $0.isSpecial } }
    return try finished(tokens(of: text), second.map(tokens), slots, maxLength, truncation)
  }

  /// The pieces that are not added tokens are normalized.
  private func pieces(of text: String) -> [(text: AlignedText, token: Int?)] {
    var pieces: [(text: AlignedText, token: Int?)] = []
    for raw in addedRaw.split(AlignedText(Characters(text))) {
      guard raw.token == nil else {
        pieces.append(raw)
        continue
      }
      var normal = raw.text
      for normalizer in normalizers { normalizer.normalize(&normal) }
      pieces += addedNormalized.split(normal)
    }
    return pieces
  }

  private func tokens(of text: String) throws -> [Token] {
    var tokens: [Token] = []
    for piece in pieces(of: text) {
      if let id = piece.token {
        tokens.append(Token(id: id, text: piece.text.text, at: piece.text.original(0..<piece.text.count)))
        continue
      }
      for word in words(of: piece.text) {
        let before = tokens.count
        try model.tokenize(word.text, into: &tokens)
        for index in before..<tokens.count { tokens[index].at = word.original(tokens[index].at) }
      }
    }
    return tokens
  }

  private func words(of text: AlignedText) -> [AlignedText] {
    var words = [text]
    for preTokenizer in preTokenizers {
      var parts: [AlignedText] = []
      for word in words where !word.isEmpty { preTokenizer.split(word, into: &parts) }
      words = parts
    }
    return words.filter { !$0.isEmpty }
  }

  private func finished(
    _ first: [Token], _ second: [Token]?, _ slots: [Slot], _ maxLength: Int?, _ truncation: Truncation
  ) throws -> Encoding {
    var (first, second) = (first, second)
    if let maxLength {
      guard maxLength >= slots.added else {
        throw BundleError("max_length \(maxLength) does not hold the \(slots.added) special tokens")
      }
      try truncation.cut(&first, &second, to: maxLength - slots.added)
    }
    if let trimming = postProcessor.trimming {
      trimming.trim(&first)
      if var other = second {
        trimming.trim(&other)
        second = other
      }
    }
    var encoding = Encoding()
    for slot in slots {
      switch slot {
      case .text(let number, let type):
        for token in number == 0 ? first : second ?? [] { encoding.append(token.id, token.at, number, type) }
      case .special(let ids, let type):
        for id in ids { encoding.append(id, 0..<0, nil, type) }
      }
    }
    return encoding
  }
}

extension Encoding {
  fileprivate mutating func append(_ id: Int, _ at: Range<Int>, _ sequence: Int?, _ type: Int) {
    ids.append(id)
    offsets.append(at)
    sequences.append(sequence)
    typeIds.append(type)
  }
}
