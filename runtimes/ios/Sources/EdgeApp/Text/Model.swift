/// A piece of a text with its number in the vocabulary.
struct Token: Sendable {
  var id: Int
  var text: Characters
  var at: Range<Int>  // in the word; later in the original text
}

typealias Vocabulary = [Characters: Int]

/// Words in, tokens out.
protocol TokenModel: Sendable {
  /// Appends the tokens of a word (not empty).
  func tokenize(_ word: Characters, into tokens: inout [Token]) throws
  func id(of token: Characters) -> Int?
}

extension TokenModel {
  /// The tokens `<0x..>` of the bytes of a text; nil where one is missing.
  func byteTokens(of text: Characters) -> [(id: Int, name: Characters)]? {
    let digits = Characters("0123456789ABCDEF")
    var found: [(id: Int, name: Characters)] = []
    for byte in text.string.utf8 {
      let name = Characters("<0x") + [digits[Int(byte >> 4)], digits[Int(byte & 15)]] + Characters(">")
      guard let id = id(of: name) else { return nil }
      found.append((id, name))
    }
    return found
  }
}
