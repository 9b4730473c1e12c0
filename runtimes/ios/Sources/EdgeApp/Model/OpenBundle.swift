import Foundation

/// A bundle, opened: what its tokenizer makes of a text, and what its model says.
final class OpenBundle: Sendable {
  let settings: Settings
  let tokenizer: Tokenizer

  private let folder: URL
  private let engine: any Engine

  /// `folder` holds app.json and model/; nil: the package's own resources.
  init(_ folder: URL?, task: String) async throws {
    self.folder = folder ?? Self.own
    settings = try Settings(folder: self.folder)
    guard settings.task == task else {
      throw BundleError("\(self.folder.path): is for \(settings.task), not \(task)")
    }
    let model = self.folder.appendingPathComponent("model")
    tokenizer = try Tokenizer(file: model.appendingPathComponent("tokenizer.json"))
    engine = try await Engines.open(model.appendingPathComponent(settings.file), settings)
  }

  static var own: URL { Bundle.module.resourceURL ?? Bundle.module.bundleURL }

  /// As the model reads it: with special tokens, cut to its length.
  func encode(_ text: String, _ second: String? = nil) throws -> Encoding {
    try tokenizer.encode(text, pair: second, maxLength: settings.maxLength)
  }

  /// The model's output: one list, of all tokens or of the text as a whole.
  func logits(_ encoding: Encoding) async throws -> [Double] {
    let tokens = encoding.ids.count
    let length = settings.length(for: tokens)
    var columns = columns(encoding)
    for (name, numbers) in columns {
      let padding = name == "input_ids" ? settings.padId : 0
      columns[name] = numbers + Array(repeating: padding, count: length - tokens)
    }
    return try await engine.logits(Row(columns: columns, length: length)).map(Double.init)
  }

  /// The model's output for each token, without those of the padding.
  func tokenLogits(_ encoding: Encoding, width: Int) async throws -> [[Double]] {
    let flat = try await logits(encoding)
    guard flat.count >= encoding.ids.count * width else {
      throw BundleError("the model gives \(flat.count) numbers for \(encoding.ids.count) tokens of \(width)")
    }
    return encoding.ids.indices.map { Array(flat[$0 * width..<($0 + 1) * width]) }
  }

  private func columns(_ encoding: Encoding) -> [String: [Int]] {
    let known = [
      "input_ids": encoding.ids, "attention_mask": encoding.ids.map { _ in 1 }, "token_type_ids": encoding.typeIds,
    ]
    return known.filter { name, _ in settings.inputs.contains { $0.name == name } }
  }

  /// The golden texts on this device. `answer` is what the app would show for one; `split` makes a pair
  /// of one.
  func selfTest(
    split: (String) -> (String, String?) = { ($0, nil) }, answer: (String) async throws -> String
  ) async throws -> SelfTestReport {
    let golden = try Golden(folder.appendingPathComponent("model").appendingPathComponent("golden.json"))
    var rows: [SelfTestReport.Row] = []
    var wrong: [String] = []
    for (number, text) in golden.texts.enumerated() {
      let (first, second) = split(text)
      let encoding = try encode(first, second)
      let same = columns(encoding).allSatisfy { golden.inputs[$0.key]?[number] == $0.value }
      var row = SelfTestReport.Row(text: text, idsEqual: same, answer: try await answer(text))
      if same {
        let expected = golden.logits[number]
        let clock = ContinuousClock()
        let began = clock.now
        let found = try await logits(encoding).prefix(expected.count)
        row.milliseconds = (clock.now - began) / .milliseconds(1)
        guard found.count == expected.count else {
          throw BundleError("text \(number + 1): the model gives \(found.count) numbers, not \(expected.count)")
        }
        let difference = zip(found, expected).map { abs($0 - $1) }.max() ?? 0
        row.difference = difference
        // Not a number is not within the bound either.
        if !(difference <= settings.bound) {
          wrong.append("text \(number + 1): an output is off by \(String(format: "%.4g", difference))")
        }
      } else {
        wrong.append("text \(number + 1): token ids differ")
      }
      rows.append(row)
    }
    return SelfTestReport(bound: settings.bound, runtime: engine.runtime, wrong: wrong, rows: rows)
  }
}

/// golden.json: texts, and what the model was verified to make of them.
private struct Golden {
  let texts: [String]
  let inputs: [String: [[Int]]]
  let logits: [[Double]]

  init(_ file: URL) throws {
    do {
      let json = try Json(parsing: [UInt8](Data(contentsOf: file)))
      texts = try json.field("texts").list.map { try $0.string }
      let columns = try json.field("inputs").fields.map { name, rows in
        (name.string, try rows.list.map { row in try row.list.map { try $0.int } })
      }
      inputs = Dictionary(columns, uniquingKeysWith: { first, _ in first })
      logits = try json.field("outputs").field("logits").list.map { try $0.numbers }
    } catch {
      throw BundleError("\(file.path): no golden texts (\((error as? JsonError)?.message ?? error.localizedDescription))")
    }
    guard ([logits.count] + inputs.values.map(\.count)).allSatisfy({ $0 == texts.count }) else {
      throw BundleError("\(file.path): texts, inputs and outputs are not equally many")
    }
  }
}

extension Json {
  /// All numbers of a list of lists.
  fileprivate var numbers: [Double] {
    get throws {
      guard case .list(let values) = self else { return [try double] }
      return try values.flatMap { try $0.numbers }
    }
  }
}
