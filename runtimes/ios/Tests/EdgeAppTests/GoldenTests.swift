import XCTest

@testable import EdgeApp

/// The golden texts on this machine, and what a library must not do: answer for another task, or break on no text.
final class GoldenTests: XCTestCase {
  private var task: String {
    get throws { try Settings(folder: OpenBundle.own).task }
  }

  private func report() async throws -> SelfTestReport {
    let task = try self.task
    switch task {
    case EdgeClassifier.task:
      return try await EdgeClassifier.load().selfTest()
    case EdgeTagger.task:
      return try await EdgeTagger.load().selfTest()
    case EdgeAnswerer.task:
      return try await EdgeAnswerer.load().selfTest()
    default:
      return try await EdgeEmbedder.load().selfTest()
    }
  }

  func testGoldenTexts() async throws {
    let report = try await report()
    print(String(decoding: try JSONEncoder().encode(report), as: UTF8.self))
    XCTAssertTrue(report.passed, report.wrong.joined(separator: "; "))
    XCTAssertGreaterThan(report.texts, 0)
  }

  func testNoText() async throws {
    let task = try self.task
    switch task {
    case EdgeClassifier.task:
      let model = try await EdgeClassifier.load()
      let answer = try await model.classify("", topK: 1)
      XCTAssertEqual(answer.count, 1)
      let none = try await model.classify("", topK: 0)
      XCTAssertTrue(none.isEmpty)
    case EdgeTagger.task:
      let spans = try await EdgeTagger.load().tag("")
      XCTAssertTrue(spans.isEmpty)
    case EdgeAnswerer.task:
      let answer = try await EdgeAnswerer.load().answer("", context: "")
      XCTAssertEqual(answer.text, "")
    default:
      let vector = try await EdgeEmbedder.load().embed("")
      XCTAssertFalse(vector.isEmpty)
    }
  }

  func testAnotherTaskIsRefused() async throws {
    do {
      if try task == EdgeTagger.task {
        _ = try await EdgeClassifier.load()
      } else {
        _ = try await EdgeTagger.load()
      }
      XCTFail("a model for another task was opened")
    } catch let error as BundleError {
      XCTAssertTrue(error.message.contains("is for \(try task)"), error.message)
    }
  }

  func testNoBundleIsTold() async throws {
    do {
      _ = try await EdgeClassifier.load(from: URL(fileURLWithPath: "/nowhere"))
      XCTFail("nothing was opened")
    } catch let error as BundleError {
      XCTAssertTrue(error.message.contains("/nowhere: no bundle"), error.message)
    }
  }

  func testSpansOfTags() {
    let found = spans(["B-a", "I-a", "I-b", "O", "I-b", "B-b", "I-b", "B"])
    XCTAssertEqual(found.map(\.label), ["a", "b", "b", "b", ""])
    XCTAssertEqual(found.map(\.words), [0...1, 2...2, 4...4, 5...6, 7...7])
  }

  func testPlacesAreOfTheString() {
    let text = "cafe\u{301} \u{1F469}\u{200D}\u{1F467} x"
    XCTAssertEqual(text[Places(text).range(0..<5)], "caf\u{E9}")
    XCTAssertEqual(text[Places(text).range(10..<11)], "x")
  }
}
