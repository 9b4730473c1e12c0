import Foundation

/// The words of a text that answer a question; no range and no text say that the text has no answer.
public struct EdgeAnswer: Sendable, Equatable {
  public let text: String
  public let range: Range<String.Index>?  // of the context that was given
  public let score: Double
}

/// The words of a text that answer a question about it.
public struct EdgeAnswerer: Sendable {
  static let task = "question-answering"

  private let bundle: OpenBundle

  /// Opens the model; `folder` holds app.json and model/, nil: this package's own. Throws BundleError.
  public static func load(from folder: URL? = nil) async throws -> EdgeAnswerer {
    EdgeAnswerer(bundle: try await OpenBundle(folder, task: task))
  }

  /// The best span of the context and its probability; none, where the model was trained for that and finds it better.
  ///
  /// A context longer than the model reads goes through it in windows that overlap; the span with the largest sum of
  /// start and end logit wins, of at most `longest_answer` words.
  public func answer(_ question: String, context: String) async throws -> EdgeAnswer {
    let text = Characters(context)
    let words = BertPreTokenizer.words(text)
    let (question, size) = try cut(oneLine(question), to: bundle.settings.maxLength / 2)
    let room = bundle.settings.maxLength - bundle.tokenizer.postProcessor.pair.added - size
    var best: (sum: Double, words: Range<Int>, score: Double)?
    var none = (sum: Double.infinity, score: 0.0)
    for window in try windows(context, words, room) {
      let part = words.isEmpty ? 0..<0 : words[window.lowerBound].lowerBound..<words[window.upperBound].upperBound
      let found = try await read(question, Characters(text[part]).string)
      let empty = (sum: found.starts[0] + found.ends[0], score: found.startShares[0] * found.endShares[0])
      if empty < none { none = empty }
      for start in found.starts.indices.dropFirst() {
        for stop in start..<min(start + longestAnswer, found.ends.count) {
          let sum = found.starts[start] + found.ends[stop]
          guard sum > best?.sum ?? -.infinity else { continue }
          let first = window.lowerBound + start - 1
          best = (sum, first..<first + stop - start + 1, found.startShares[start] * found.endShares[stop])
        }
      }
    }
    guard let best, !(mayBeNone && none.sum > best.sum) else { return EdgeAnswer(text: "", range: nil, score: none.score) }
    let place = words[best.words.lowerBound].lowerBound..<words[best.words.upperBound - 1].upperBound
    let range = Places(context).range(place)
    return EdgeAnswer(text: String(context[range]), range: range, score: best.score)
  }

  /// The golden texts on this device: a question is the first line, its context the rest.
  public func selfTest() async throws -> SelfTestReport {
    func split(_ text: String) -> (String, String?) {
      let characters = Characters(text)
      let line = characters.firstIndex(of: "\n") ?? characters.count
      return (Characters(characters[..<line]).string, Characters(characters.dropFirst(line + 1)).string)
    }
    return try await bundle.selfTest(split: split) { text in
      let (question, context) = split(text)
      return try await answer(question, context: context ?? "").text
    }
  }

  private var longestAnswer: Int { bundle.settings.longestAnswer ?? 30 }
  private var mayBeNone: Bool { bundle.settings.mayBeNone ?? false }

  /// Words parted by single blanks.
  private func oneLine(_ text: String) -> String {
    let words = Characters(text).split { $0.isAny(.space) || 0x1C...0x1F ~= $0.value }
    return Characters(words.joined(separator: [" "])).string
  }

  /// The text cut to so many tokens, and how many it has.
  private func cut(_ text: String, to limit: Int) throws -> (String, Int) {
    let whole = try bundle.tokenizer.encode(text, withSpecials: false)
    guard whole.ids.count > limit else { return (text, whole.ids.count) }
    let end = limit > 0 ? whole.offsets[limit - 1].upperBound : 0
    return (Characters(Characters(text)[..<end]).string, limit)
  }

  /// First and last word of each window: as many words as `room` tokens hold, but one at least. The next begins at most
  /// `max_length / overlap` tokens before its end, and at most half of it.
  private func windows(_ context: String, _ words: [Range<Int>], _ room: Int) throws -> [ClosedRange<Int>] {
    guard !words.isEmpty else { return [0...0] }
    var begins: [Int] = []  // of each word, in tokens; a word without tokens takes no room
    var ends: [Int] = []
    var token = 0
    for place in tokens(of: words, in: try bundle.tokenizer.encode(context, withSpecials: false)) {
      begins.append(place?.lowerBound ?? token)
      token = place.map { $0.upperBound + 1 } ?? token
      ends.append(token)
    }
    let shared = min(bundle.settings.maxLength / (bundle.settings.overlap ?? 3), max(room / 2, 0))
    var found: [ClosedRange<Int>] = []
    var first = 0
    while true {
      let stop = max(ends.firstIndex { $0 > begins[first] + room } ?? ends.count, first + 1)
      found.append(first...stop - 1)
      if stop >= words.count { return found }
      let next = begins.firstIndex { $0 >= ends[stop - 1] - shared } ?? begins.count
      first = min(max(next, first + 1), stop)
    }
  }

  /// Start and end logits, and their shares, of [CLS], then of each word of the window that was not cut off.
  private func read(_ question: String, _ window: String) async throws -> (
    starts: [Double], ends: [Double], startShares: [Double], endShares: [Double]
  ) {
    let encoding = try bundle.encode(question, window)
    let logits = try await bundle.tokenLogits(encoding, width: 2)
    var places = tokens(of: BertPreTokenizer.words(Characters(window)), in: encoding, sequence: 1)
    while let last = places.last, last == nil { places.removeLast() }
    var units = [0...0]
    for place in places { units.append(place ?? units[units.count - 1]) }  // a word without tokens borrows those before it
    let starts = units.map { logits[$0.lowerBound][0] }
    let ends = units.map { logits[$0.upperBound][1] }
    return (starts, ends, softmax(starts), softmax(ends))
  }
}
