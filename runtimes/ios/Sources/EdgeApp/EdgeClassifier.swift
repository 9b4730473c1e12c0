import Foundation

/// A label, and the probability that the model gives it.
public struct EdgeLabel: Sendable, Equatable {
  public let label: String
  public let score: Double
}

/// One label for a text.
public struct EdgeClassifier: Sendable {
  static let task = "text-classification"

  private let bundle: OpenBundle

  /// Opens the model; `folder` holds app.json and model/, nil: this package's own. Throws BundleError.
  public static func load(from folder: URL? = nil) async throws -> EdgeClassifier {
    EdgeClassifier(bundle: try await OpenBundle(folder, task: task))
  }

  /// The `topK` labels with their probabilities, best first.
  public func classify(_ text: String, topK: Int = 3) async throws -> [EdgeLabel] {
    let shares = softmax(try await bundle.logits(bundle.encode(text)))
    let labels = bundle.settings.labels
    guard shares.count == labels.count else {
      throw BundleError("the model gives \(shares.count) numbers for \(labels.count) labels")
    }
    let order = shares.indices.sorted { (-shares[$0], $0) < (-shares[$1], $1) }
    return order.prefix(max(0, topK)).map { EdgeLabel(label: labels[$0], score: shares[$0]) }
  }

  /// The golden texts on this device.
  public func selfTest() async throws -> SelfTestReport {
    try await bundle.selfTest { text in
      try await classify(text, topK: 1).map { "\($0.label) \($0.score)" }.joined()
    }
  }
}

func softmax(_ logits: [Double]) -> [Double] {
  let highest = logits.max() ?? 0
  let powers = logits.map { exp($0 - highest) }
  let sum = powers.reduce(0, +)
  return powers.map { $0 / sum }
}
