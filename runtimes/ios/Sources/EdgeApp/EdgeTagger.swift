import Foundation

/// A labelled part of a text.
public struct EdgeSpan: Sendable, Equatable {
  public let label: String
  public let range: Range<String.Index>  // of the text that was given
  public let text: String
  public let score: Double
}

/// Labelled spans of a text, from one BIO tag a word.
public struct EdgeTagger: Sendable {
  static let task = "token-classification"

  private let bundle: OpenBundle

  /// Opens the model; `folder` holds app.json and model/, nil: this package's own. Throws BundleError.
  public static func load(from folder: URL? = nil) async throws -> EdgeTagger {
    EdgeTagger(bundle: try await OpenBundle(folder, task: task))
  }

  /// The spans in the order of the text.
  public func tag(_ text: String) async throws -> [EdgeSpan] {
    let encoding = try bundle.encode(text)
    let labels = bundle.settings.labels
    let logits = try await bundle.tokenLogits(encoding, width: labels.count)
    let words = BertPreTokenizer.words(Characters(text))
    let outside = labels.firstIndex(of: "O") ?? 0
    var tags: [String] = []
    var scores: [Double] = []
    for place in tokens(of: words, in: encoding) {
      // A word that was cut off has no logits: all classes are equally likely there.
      let classes = place.map { logits[$0.lowerBound] } ?? Array(repeating: 0, count: labels.count)
      let known = classes.contains { $0 != 0 }
      tags.append(labels[known ? highest(classes) : outside])
      scores.append(softmax(classes).max() ?? 0)
    }
    let places = Places(text)
    return spans(tags).map { label, part in
      let range = places.range(words[part.lowerBound].lowerBound..<words[part.upperBound].upperBound)
      let score = scores[part].reduce(0, +) / Double(part.count)
      return EdgeSpan(label: label, range: range, text: String(text[range]), score: score)
    }
  }

  /// The golden texts on this device.
  public func selfTest() async throws -> SelfTestReport {
    try await bundle.selfTest { text in
      try await tag(text).map { "\($0.label): \($0.text)" }.joined(separator: ", ")
    }
  }
}

/// Where the code points of a text lie in the String.
struct Places {
  private let indices: [String.Index]

  init(_ text: String) {
    indices = Array(text.unicodeScalars.indices) + [text.endIndex]
  }

  func range(_ characters: Range<Int>) -> Range<String.Index> {
    indices[characters.lowerBound]..<indices[characters.upperBound]
  }
}

/// The place of the highest number, of equal ones the first.
func highest(_ numbers: [Double]) -> Int {
  numbers.indices.max { (numbers[$0], -$0) < (numbers[$1], -$1) } ?? 0
}

/// First and last token that overlap each word; nil where none does. Both are in the order of the text.
func tokens(of words: [Range<Int>], in encoding: Encoding, sequence: Int = 0) -> [ClosedRange<Int>?] {
  let offsets = encoding.offsets
  let tokens = offsets.indices.filter { encoding.sequences[$0] == sequence && !offsets[$0].isEmpty }
  var at = 0
  return words.map { word in
    while at < tokens.count, offsets[tokens[at]].upperBound <= word.lowerBound { at += 1 }
    var stop = at
    while stop < tokens.count, offsets[tokens[stop]].lowerBound < word.upperBound { stop += 1 }
    return stop > at ? tokens[at]...tokens[stop - 1] : nil
  }
}

/// Spans of BIO tags, from the first word to the last: one begins at B, and at an I that does not continue a span of
/// its label.
func spans(_ tags: [String]) -> [(label: String, words: ClosedRange<Int>)] {
  var found: [(label: String, words: ClosedRange<Int>)] = []
  var before: String?
  for (word, tag) in tags.enumerated() {
    let parts = tag.split(separator: "-", maxSplits: 1, omittingEmptySubsequences: false)
    let kind = String(parts[0])
    let label = parts.count > 1 ? String(parts[1]) : ""
    if kind == "I", label == before, let last = found.last {
      found[found.count - 1].words = last.words.lowerBound...word
    } else if kind != "O" {
      found.append((label, word...word))
    }
    before = kind == "O" ? nil : label
  }
  return found
}
