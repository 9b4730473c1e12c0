import EdgeApp
import SwiftUI

/// A text field, the answer, and the self-test on this device. In an app: `WindowGroup { SampleView(.classifier) }`.
struct SampleView: View {
  let kind: SampleModel.Kind

  @State private var model: SampleModel?
  @State private var text = ""
  @State private var context = ""
  @State private var lines: [String] = []
  @State private var isBusy = false

  init(_ kind: SampleModel.Kind) {
    self.kind = kind
  }

  var body: some View {
    Form {
      TextField(kind == .answerer ? "A question" : "A text", text: $text)
        .onSubmit { run { try await $0.answer(text, context) } }
      if kind == .answerer {
        TextField("The text that may answer it", text: $context, axis: .vertical)
      }
      Button("Answer") { run { try await $0.answer(text, context) } }
      Button("Test this device") { run { Self.lines(of: try await $0.selfTest()) } }
      Section {
        ForEach(Array(lines.enumerated()), id: \.offset) { _, line in Text(line) }
      }
    }
    .disabled(isBusy || model == nil)
    .task {
      do { model = try await SampleModel.load(kind) } catch { lines = [error.localizedDescription] }
    }
  }

  /// What the model says replaces the lines; so does what went wrong.
  private func run(_ ask: @escaping @Sendable (SampleModel) async throws -> [String]) {
    guard let model, !isBusy else { return }
    isBusy = true
    Task {
      do { lines = try await ask(model) } catch { lines = [error.localizedDescription] }
      isBusy = false
    }
  }

  private static func lines(of report: SelfTestReport) -> [String] {
    let verdict = report.passed ? "passed" : "failed"
    let time = report.milliseconds.map { String(format: ", %.1f ms", $0) } ?? ""
    return ["\(verdict): \(report.texts) texts\(time)", report.runtime] + report.wrong
  }
}

/// The model of any task, with answers as lines.
struct SampleModel: Sendable {
  enum Kind: Sendable {
    case classifier, tagger, answerer, embedder
  }

  let answer: @Sendable (_ text: String, _ context: String) async throws -> [String]
  let selfTest: @Sendable () async throws -> SelfTestReport

  static func load(_ kind: Kind) async throws -> SampleModel {
    switch kind {
    case .classifier:
      let model = try await EdgeClassifier.load()
      return SampleModel(
        answer: { text, _ in try await model.classify(text).map { "\($0.label) \(percent($0.score))" } },
        selfTest: { try await model.selfTest() })
    case .tagger:
      let model = try await EdgeTagger.load()
      return SampleModel(
        answer: { text, _ in try await model.tag(text).map { "\($0.label): \($0.text) \(percent($0.score))" } },
        selfTest: { try await model.selfTest() })
    case .answerer:
      let model = try await EdgeAnswerer.load()
      return SampleModel(
        answer: { question, context in
          let answer = try await model.answer(question, context: context)
          return ["\(answer.text.isEmpty ? "no answer" : answer.text) \(percent(answer.score))"]
        },
        selfTest: { try await model.selfTest() })
    case .embedder:
      let model = try await EdgeEmbedder.load()
      return SampleModel(
        answer: { text, _ in [try await model.embed(text).prefix(8).map { "\($0)" }.joined(separator: ", ")] },
        selfTest: { try await model.selfTest() })
    }
  }

  private static func percent(_ score: Double) -> String {
    String(format: "%.0f %%", 100 * score)
  }
}
