import Foundation

/// A vector for a text; texts that mean the same have a large cosine.
public struct EdgeEmbedder: Sendable {
  static let task = "sentence-similarity"

  private let bundle: OpenBundle

  /// Opens the model; `folder` holds app.json and model/, nil: this package's own. Throws BundleError.
  public static func load(from folder: URL? = nil) async throws -> EdgeEmbedder {
    EdgeEmbedder(bundle: try await OpenBundle(folder, task: task))
  }

  /// The embedding, as the model gives it.
  public func embed(_ text: String) async throws -> [Float] {
    try await bundle.logits(bundle.encode(text)).map(Float.init)
  }

  /// The golden texts on this device.
  public func selfTest() async throws -> SelfTestReport {
    try await bundle.selfTest { text in "\(try await embed(text).count) numbers" }
  }
}
