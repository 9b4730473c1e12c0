import XCTest

@testable import EdgeApp

/// Answers the texts of the file that EDGEKD_ASKED names, [{"folder", "task", "texts": [[text, context?], ..]}], on the
/// lines of the file EDGEKD_ANSWERS: the report of the self-test (or the error) first, then each answer.
final class AnswersTests: XCTestCase {
  struct Asked: Decodable {
    let folder: String
    let task: String
    let texts: [[String]]
  }

  func testAnswers() async throws {
    let places = ProcessInfo.processInfo.environment
    guard let asked = places["EDGEKD_ASKED"], let answers = places["EDGEKD_ANSWERS"] else { throw XCTSkip("not asked") }
    var lines: [String] = []
    for one in try JSONDecoder().decode([Asked].self, from: Data(contentsOf: URL(fileURLWithPath: asked))) {
      do {
        lines += try await answered(one, URL(fileURLWithPath: one.folder))
      } catch let error as BundleError {
        lines.append(try line(["error": error.message]))
      }
    }
    try lines.joined(separator: "\n").write(toFile: answers, atomically: true, encoding: .utf8)
  }

  private func answered(_ asked: Asked, _ folder: URL) async throws -> [String] {
    var lines: [String] = []
    switch asked.task {
    case EdgeClassifier.task:
      let model = try await EdgeClassifier.load(from: folder)
      lines.append(try line(try await model.selfTest()))
      for texts in asked.texts {
        let found = try await model.classify(texts[0], topK: 3)
        lines.append(try line(found.map { [$0.label, "\($0.score)"] }))
      }
    case EdgeTagger.task:
      let model = try await EdgeTagger.load(from: folder)
      lines.append(try line(try await model.selfTest()))
      for texts in asked.texts {
        let found = try await model.tag(texts[0])
        lines.append(try line(found.map { [$0.label] + places($0.range, texts[0]) + [$0.text, "\($0.score)"] }))
      }
    case EdgeAnswerer.task:
      let model = try await EdgeAnswerer.load(from: folder)
      lines.append(try line(try await model.selfTest()))
      for texts in asked.texts {
        let found = try await model.answer(texts[0], context: texts[1])
        let range = found.range.map { places($0, texts[1]) } ?? ["0", "0"]
        lines.append(try line([found.text] + range + ["\(found.score)"]))
      }
    default:
      let model = try await EdgeEmbedder.load(from: folder)
      lines.append(try line(try await model.selfTest()))
      for texts in asked.texts { lines.append(try line(try await model.embed(texts[0]))) }
    }
    return lines
  }

  /// In code points, as Python counts.
  private func places(_ range: Range<String.Index>, _ text: String) -> [String] {
    [range.lowerBound, range.upperBound].map { "\(text.unicodeScalars.distance(from: text.startIndex, to: $0))" }
  }

  private func line(_ value: some Encodable) throws -> String {
    String(decoding: try JSONEncoder().encode(value), as: UTF8.self)
  }
}
