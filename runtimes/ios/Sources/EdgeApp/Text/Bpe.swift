/// Splits as GPT-2's regular expression does, and writes each byte of UTF-8 as one visible character.
struct ByteLevel: PreTokenizer {
  var addPrefixSpace = true
  var useRegex = true

  func split(_ text: AlignedText, into parts: inout [AlignedText]) {
    var text = text
    if addPrefixSpace, text.text.first != " " { text.prepend([" "]) }
    var start = 0
    while start < text.count {
      let end = useRegex ? Self.match(text.text, from: start) : text.count
      var part = text.slice(start..<end)
      part.expand { character, into in
        for byte in UTF8.encode(character)! { into.append(Self.alphabet[Int(byte)]) }
      }
      parts.append(part)
      start = end
    }
  }

  /// GPT-2's alphabet: a printable byte stands for itself, the others for the characters from U+0100 on.
  private static let alphabet: Characters = {
    var next: UInt32 = 0x100
    return (UInt32(0)..<256).map { byte in
      if 0x21...0x7E ~= byte || 0xA1...0xAC ~= byte || byte >= 0xAE { return Unicode.Scalar(byte)! }
      defer { next += 1 }
      return Unicode.Scalar(next)!
    }
  }()

  private static let contractions = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d"].map { Characters($0) }
  private static let seen: CharacterKind = [.letter, .number, .gap]

  /// The end of the match that starts at `start`, of the expression
  /// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
  private static func match(_ text: Characters, from start: Int) -> Int {
    if let contraction = contractions.first(where: { text.has($0, at: start) }) { return start + contraction.count }
    let word = start + (text[start] == " " ? 1 : 0)
    for kind: (Unicode.Scalar) -> Bool in [{ $0.isAny(.letter) }, { $0.isAny(.number) }, { !$0.isAny(seen) }] {
      let end = run(text, from: word, of: kind)
      if end > word { return end }
    }
    let end = run(text, from: start) { $0.isAny(.gap) }
    let lastBelongsToNext = end < text.count && end - start > 1
    return lastBelongsToNext ? end - 1 : end
  }

  /// The end of the characters of a kind.
  private static func run(_ text: Characters, from start: Int, of kind: (Unicode.Scalar) -> Bool) -> Int {
    text[start...].firstIndex { !kind($0) } ?? text.count
  }
}

/// Byte-level BPE, as GPT-2 and RoBERTa use it.
struct Bpe: TokenModel {
  struct Options {
    var unknown: Characters?
    var fuseUnknown = false
    var byteFallback = false  // an unknown character becomes tokens <0x..>
    var ignoreMerges = false  // a word of the vocabulary is that token, whatever the merges say
  }

  private struct Pair: Hashable {
    let left, right: Int
  }

  private struct Symbol {
    var id: Int
    var at: Range<Int>
    var before, after: Int  // neighbours; -1: none
    var gone = false
  }

  private struct Candidate: Comparable {
    let rank, place, id: Int

    static func < (one: Self, other: Self) -> Bool { (one.rank, one.place) < (other.rank, other.place) }
  }

  private let vocabulary: Vocabulary
  private let texts: [Int: Characters]
  private let merges: [Pair: (rank: Int, id: Int)]
  private let fuseUnknown, byteFallback, ignoreMerges: Bool
  private let unknown: Int?

  init(vocabulary: Vocabulary, merges: [(Characters, Characters)], options: Options) throws {
    self.vocabulary = vocabulary
    fuseUnknown = options.fuseUnknown
    byteFallback = options.byteFallback
    ignoreMerges = options.ignoreMerges
    texts = Dictionary(vocabulary.map { ($1, $0) }, uniquingKeysWith: { first, _ in first })
    var known: [Pair: (rank: Int, id: Int)] = [:]
    for (rank, (left, right)) in merges.enumerated() {
      guard let one = vocabulary[left], let other = vocabulary[right], let both = vocabulary[left + right] else {
        throw BundleError("a merge is not of the vocabulary: \(left.string) \(right.string)")
      }
      known[Pair(left: one, right: other)] = (rank, both)
    }
    self.merges = known
    unknown = try options.unknown.map { token in
      guard let id = vocabulary[token] else {
        throw BundleError("unk_token is not in the vocabulary: \(token.string)")
      }
      return id
    }
  }

  func id(of token: Characters) -> Int? { vocabulary[token] }

  func tokenize(_ word: Characters, into tokens: inout [Token]) {
    if ignoreMerges, let id = vocabulary[word] {
      tokens.append(Token(id: id, text: word, at: 0..<word.count))
      return
    }
    var symbols = symbols(of: word)
    merge(&symbols)
    for symbol in symbols where !symbol.gone {
      tokens.append(Token(id: symbol.id, text: texts[symbol.id] ?? [], at: symbol.at))
    }
  }

  private func symbols(of word: Characters) -> [Symbol] {
    var symbols: [Symbol] = []
    var afterUnknown = false
    func add(_ id: Int, _ place: Int) {
      symbols.append(Symbol(id: id, at: place..<place + 1, before: symbols.count - 1, after: symbols.count + 1))
    }
    for (place, character) in word.enumerated() {
      let wasUnknown = afterUnknown
      afterUnknown = false
      if let id = vocabulary[[character]] {
        add(id, place)
      } else if byteFallback, let bytes = byteTokens(of: [character]) {
        for byte in bytes { add(byte.id, place) }
      } else if let unknown {
        afterUnknown = true
        if wasUnknown && fuseUnknown {
          let last = symbols.count - 1
          symbols[last].at = symbols[last].at.lowerBound..<place + 1
        } else {
          add(unknown, place)
        }
      }
    }
    if !symbols.isEmpty { symbols[symbols.count - 1].after = -1 }
    return symbols
  }

  /// The merge of the lowest rank first, of one rank the leftmost.
  private func merge(_ symbols: inout [Symbol]) {
    var candidates = Heap<Candidate>()
    func propose(_ left: Int, _ symbols: [Symbol]) {
      guard left >= 0, symbols[left].after >= 0 else { return }
      guard let merge = merges[Pair(left: symbols[left].id, right: symbols[symbols[left].after].id)] else { return }
      candidates.push(Candidate(rank: merge.rank, place: left, id: merge.id))
    }
    for place in symbols.indices { propose(place, symbols) }
    while let next = candidates.pop() {
      let left = symbols[next.place]
      guard !left.gone, left.after >= 0 else { continue }
      let right = symbols[left.after]
      // One of the two may have been merged meanwhile.
      guard merges[Pair(left: left.id, right: right.id)]?.id == next.id else { continue }
      symbols[next.place].id = next.id
      symbols[next.place].at = left.at.lowerBound..<right.at.upperBound
      symbols[next.place].after = right.after
      symbols[left.after].gone = true
      if right.after >= 0 { symbols[right.after].before = next.place }
      propose(left.before, symbols)
      propose(next.place, symbols)
    }
  }
}

/// A priority queue, the least first.
private struct Heap<Element: Comparable> {
  private var elements: [Element] = []

  mutating func push(_ element: Element) {
    elements.append(element)
    var child = elements.count - 1
    while child > 0, elements[child] < elements[(child - 1) / 2] {
      elements.swapAt(child, (child - 1) / 2)
      child = (child - 1) / 2
    }
  }

  mutating func pop() -> Element? {
    guard let least = elements.first else { return nil }
    elements.swapAt(0, elements.count - 1)
    elements.removeLast()
    var parent = 0
    while true {
      let children = (2 * parent + 1..<2 * parent + 3).filter { $0 < elements.count }
      guard let child = children.min(by: { elements[$0] < elements[$1] }), elements[child] < elements[parent] else { break }
      elements.swapAt(child, parent)
      parent = child
    }
    return least
  }
}
