/// Characters are code points, as the tokenizers library counts: a String compares "é" and "e" + "´" as equal.
typealias Characters = [Unicode.Scalar]

extension Array where Element == Unicode.Scalar {
  init(_ text: String) {
    self = Array(text.unicodeScalars)
  }

  var string: String {
    var view = String.UnicodeScalarView()
    view.append(contentsOf: self)
    return String(view)
  }

  func has(_ part: Characters, at place: Int) -> Bool {
    guard part.count <= count - place else { return false }
    for offset in part.indices where self[place + offset] != part[offset] { return false }
    return true
  }
}

/// A text under way from what was written to what the model reads, each character with its place in the original.
struct AlignedText {
  private(set) var text: Characters
  private var from: [Range<Int>]

  init(_ text: Characters) {
    self.text = text
    from = text.indices.map { $0..<$0 + 1 }
  }

  private init(_ text: Characters, _ from: [Range<Int>]) {
    self.text = text
    self.from = from
  }

  var count: Int { text.count }
  var isEmpty: Bool { text.isEmpty }

  func slice(_ part: Range<Int>) -> AlignedText {
    AlignedText(Array(text[part]), Array(from[part]))
  }

  /// Where these characters (at least one) lie in the original.
  func original(_ part: Range<Int>) -> Range<Int> {
    from[part.lowerBound].lowerBound..<from[part.upperBound - 1].upperBound
  }

  /// Replaces the text. Each character either takes the place of the next old one (not inserted) or comes in addition,
  /// and then shares the origin of the old character before: so the library counts, and so offsets come out the same.
  mutating func replace(_ changes: [(character: Unicode.Scalar, inserted: Bool)]) {
    var places: [Range<Int>] = []
    places.reserveCapacity(changes.count)
    var taken = 0
    for change in changes {
      if change.inserted {
        places.append(taken == 0 ? 0..<0 : from[taken - 1])
      } else {
        places.append(from[taken])
        taken += 1
      }
    }
    text = changes.map(\.character)
    from = places
  }

  mutating func keep(_ wanted: (Unicode.Scalar) -> Bool) {
    let kept = text.indices.filter { wanted(text[$0]) }
    guard kept.count < count else { return }
    from = kept.map { from[$0] }
    text = kept.map { text[$0] }
  }

  mutating func map(_ function: (Unicode.Scalar) -> Unicode.Scalar) {
    for index in text.indices { text[index] = function(text[index]) }
  }

  /// Each character becomes several (none is dropped: at least one each).
  mutating func expand(_ function: (Unicode.Scalar, inout Characters) -> Void) {
    var longer: Characters = []
    var places: [Range<Int>] = []
    longer.reserveCapacity(count)
    places.reserveCapacity(count)
    for index in text.indices {
      function(text[index], &longer)
      while places.count < longer.count { places.append(from[index]) }
    }
    text = longer
    from = places
  }

  /// Before the first character, whose origin it takes; nothing where the text is empty.
  mutating func prepend(_ before: Characters) {
    guard let first = from.first else { return }
    text.insert(contentsOf: before, at: 0)
    from.insert(contentsOf: repeatElement(first, count: before.count), at: 0)
  }

  /// The pieces cover the text; each that is marked becomes `content`, which takes the origin of its last character.
  mutating func substitute(_ pieces: [(part: Range<Int>, replaced: Bool)], by content: Characters) {
    var changed: Characters = []
    var places: [Range<Int>] = []
    for (part, replaced) in pieces {
      changed += replaced ? content : Array(text[part])
      places += replaced ? content.map { _ in from[part.upperBound - 1] } : Array(from[part])
    }
    text = changed
    from = places
  }
}

protocol Normalizer: Sendable {
  func normalize(_ text: inout AlignedText)
}

/// Appends the parts of a text that is not empty; an empty part is dropped by the caller.
protocol PreTokenizer: Sendable {
  func split(_ text: AlignedText, into parts: inout [AlignedText])
}
