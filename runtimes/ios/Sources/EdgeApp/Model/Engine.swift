import Foundation

/// One text as the model reads it: the numbers by the names of its inputs.
struct Row: Sendable {
  var columns: [String: [Int]]
  var length: Int
}

/// A model's file, opened by a runtime.
protocol Engine: Sendable {
  /// Its name, and its version where it tells one.
  var runtime: String { get }
  /// The logits of a row that has a length which the file takes, as one list.
  func logits(_ row: Row) async throws -> [Float]
}

enum Engines {
  static func open(_ model: URL, _ settings: Settings) async throws -> any Engine {
    #if canImport(CoreML)
      if settings.target == "coreml" { return try await CoreMLEngine(model, settings) }
    #endif
    #if canImport(ExecuTorch)
      if settings.target == "executorch" { return try ExecuTorchEngine(model, settings) }
    #endif
    throw BundleError("\(model.path): this build has no runtime for \(settings.target)")
  }
}
