/// Every match of the pattern becomes `content`. A pattern is a text, or at least `repeated` times its one character.
struct Replace: Normalizer {
  let pattern: Characters
  var repeated = 0  // 0: the pattern is a text
  let content: Characters

  func normalize(_ text: inout AlignedText) {
    var pieces: [(part: Range<Int>, replaced: Bool)] = []
    var place = 0
    while place < text.count {
      let length = match(text.text, at: place)
      let end = place + max(length, 1)
      pieces.append((place..<end, length > 0))
      place = end
    }
    if pieces.contains(where: \.replaced) { text.substitute(pieces, by: content) }
  }

  /// The length of the match; 0: none.
  private func match(_ text: Characters, at place: Int) -> Int {
    guard repeated > 0 else { return text.has(pattern, at: place) ? pattern.count : 0 }
    let end: Int = text[place...].firstIndex { $0 != pattern[0] } ?? text.count
    return end - place >= repeated ? end - place : 0
  }
}

struct Prepend: Normalizer {
  let before: Characters

  func normalize(_ text: inout AlignedText) { text.prepend(before) }
}

/// Blanks become a visible character, at which words begin.
struct Metaspace: PreTokenizer {
  enum Scheme: String {
    case always, first, never
  }

  let replacement: Unicode.Scalar
  let prepend: Scheme
  let splits: Bool

  func split(_ text: AlignedText, into parts: inout [AlignedText]) {
    var text = text
    text.map { $0 == " " ? replacement : $0 }
    let first = text.original(0..<1).lowerBound == 0
    let wanted = prepend == .always || (prepend == .first && first)
    if wanted, text.text.first != replacement { text.prepend([replacement]) }
    var start = 0
    if splits {
      for place in 1..<text.count where text.text[place] == replacement {
        parts.append(text.slice(start..<place))
        start = place
      }
    }
    parts.append(text.slice(start..<text.count))
  }
}

/// SentencePiece's Unigram model.
struct Unigram: TokenModel {
  /// The best way to a place of the word: the last token starts at `start`.
  private struct Best {
    var start = 0
    var score = 0.0
    var reached = false
    var unknown = false
  }

  private let vocabulary: [Characters: (id: Int, score: Double)]
  private let unknown: Int?
  private let byteFallback: Bool
  private let longest: Int
  private let unknownScore: Double

  init(vocabulary entries: [(text: Characters, score: Double)], unknown: Int?, byteFallback: Bool) {
    let unknownPenalty = 10.0
    var known: [Characters: (id: Int, score: Double)] = [:]
    for (id, entry) in entries.enumerated() { known[entry.text] = (id, entry.score) }
    vocabulary = known
    self.unknown = unknown
    self.byteFallback = byteFallback
    longest = entries.map(\.text.count).max() ?? 0
    unknownScore = (entries.map(\.score).min() ?? .infinity) - unknownPenalty
  }

  func id(of token: Characters) -> Int? { vocabulary[token]?.id }

  func tokenize(_ word: Characters, into tokens: inout [Token]) throws {
    for at in pieces(of: word) {
      let piece = Characters(word[at])
      if let id = id(of: piece) {
        tokens.append(Token(id: id, text: piece, at: at))
      } else if byteFallback, let bytes = byteTokens(of: piece) {
        tokens += bytes.map { Token(id: $0.id, text: $0.name, at: at) }
      } else if let unknown {
        tokens.append(Token(id: unknown, text: piece, at: at))
      } else {
        throw BundleError("the model has no token for: \(piece.string)")
      }
    }
  }

  /// Unknown characters that follow each other are one piece.
  private func pieces(of word: Characters) -> [Range<Int>] {
    let best = bestPaths(through: word)
    var pieces: [Range<Int>] = []  // from the end
    var fusing = false
    var end = word.count
    while end > 0 {
      let step = best[end]
      if fusing, step.unknown {
        pieces[pieces.count - 1] = step.start..<pieces[pieces.count - 1].upperBound
      } else {
        pieces.append(step.start..<end)
      }
      fusing = step.unknown
      end = step.start
    }
    return pieces.reversed()
  }

  private func bestPaths(through word: Characters) -> [Best] {
    var best = [Best](repeating: Best(), count: word.count + 1)
    func offer(_ start: Int, _ end: Int, _ score: Double, unknown: Bool) {
      let sum = score + best[start].score
      guard !best[end].reached || sum > best[end].score else { return }
      best[end] = Best(start: start, score: sum, reached: true, unknown: unknown)
    }
    for start in word.indices {
      var single = false  // whether a token is this one character
      var piece: Characters = []
      for end in start + 1..<max(start + 1, min(word.count, start + longest)) + 1 {
        piece.append(word[end - 1])
        guard let found = vocabulary[piece] else { continue }
        offer(start, end, found.score, unknown: unknown == found.id)
        single = single || end == start + 1
      }
      if !single { offer(start, start + 1, unknownScore, unknown: true) }
    }
    return best
  }
}
