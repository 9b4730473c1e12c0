// What the library calls of Apple's Core ML, declared as there, for machines that have none. The model answers the golden
// ids of the bundle that it lies in with the golden logits (a golden.json in the package goes first), and other ids with
// numbers that a test can compute: ((31 id + 17 place + 7 class) mod 101) / 8 for a token, and for a text the mean of
// its tokens' numbers. It complains of a shape that the file does not have.
import Foundation

public enum MLComputeUnits: Int, Sendable { case cpuOnly, cpuAndGPU, all, cpuAndNeuralEngine }

public class MLModelConfiguration: NSObject {
  public var computeUnits = MLComputeUnits.all
  public var functionName: String?
}

public protocol MLShapedArrayScalar: Sendable {}
extension Float: MLShapedArrayScalar {}
extension Int32: MLShapedArrayScalar {}

public struct MLShapedArray<Scalar: MLShapedArrayScalar> {
  public let scalars: [Scalar]
  public let shape: [Int]

  public init<S: Sequence>(scalars: S, shape: [Int]) where S.Element == Scalar {
    self.scalars = Array(scalars)
    self.shape = shape
    precondition(self.scalars.count == shape.reduce(1, *), "the numbers do not fill the shape")
  }
}

public class MLFeatureValue: NSObject {
  fileprivate let array: Any

  public init<Scalar: MLShapedArrayScalar>(shapedArray: MLShapedArray<Scalar>) {
    array = shapedArray
  }

  public func shapedArrayValue<Scalar: MLShapedArrayScalar>(of type: Scalar.Type) -> MLShapedArray<Scalar>? {
    array as? MLShapedArray<Scalar>
  }
}

public protocol MLFeatureProvider {
  func featureValue(for featureName: String) -> MLFeatureValue?
}

public class MLDictionaryFeatureProvider: NSObject, MLFeatureProvider {
  private let values: [String: MLFeatureValue]

  public init(dictionary: [String: Any]) throws {
    values = dictionary.compactMapValues { $0 as? MLFeatureValue }
  }

  public func featureValue(for featureName: String) -> MLFeatureValue? { values[featureName] }
}

public struct Broken: Error, LocalizedError {
  let what: String
  public var errorDescription: String? { what }
}

public class MLModel: NSObject {
  private let golden: [String: Any]
  private let app: [String: Any]
  private let length: Int

  /// A folder with what the model needs to answer, in place of a compiled program.
  public class func compileModel(at url: URL) async throws -> URL {
    guard FileManager.default.fileExists(atPath: url.appendingPathComponent("Manifest.json").path) else {
      throw Broken(what: "no package at \(url.path)")
    }
    let place = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString + ".mlmodelc")
    try FileManager.default.createDirectory(at: place, withIntermediateDirectories: true)
    let model = url.deletingLastPathComponent()
    let golden = [url, model].map { $0.appendingPathComponent("golden.json") }
    let app = model.deletingLastPathComponent().appendingPathComponent("app.json")
    for file in [golden.first { FileManager.default.fileExists(atPath: $0.path) } ?? golden[1], app] {
      try FileManager.default.copyItem(at: file, to: place.appendingPathComponent(file.lastPathComponent))
    }
    return place
  }

  public init(contentsOf url: URL, configuration: MLModelConfiguration) throws {
    func read(_ name: String) throws -> [String: Any] {
      let found = try JSONSerialization.jsonObject(with: Data(contentsOf: url.appendingPathComponent(name)))
      return found as? [String: Any] ?? [:]
    }
    golden = try read("golden.json")
    app = try read("app.json")
    let lengths = app["lengths"] as? [Int] ?? []
    let names = Dictionary(uniqueKeysWithValues: lengths.map { ($0 == lengths.max() ? "main" : "tokens_\($0)", $0) })
    guard (lengths.count > 1) == (configuration.functionName != nil) else { throw Broken(what: "a function's name") }
    guard let length = names[configuration.functionName ?? "main"] else { throw Broken(what: "no such function") }
    guard configuration.computeUnits == .cpuOnly else { throw Broken(what: "not on the CPU") }
    self.length = length
  }

  public func prediction(from input: any MLFeatureProvider) throws -> any MLFeatureProvider {
    let names = (app["inputs"] as? [[String: Any]] ?? []).compactMap { $0["name"] as? String }
    let row = try names.map { name in
      guard let array = input.featureValue(for: name)?.shapedArrayValue(of: Int32.self), array.shape == [1, length] else {
        throw Broken(what: "\(name) is not [1, \(length)]")
      }
      return array.scalars.map(Int.init)
    }
    let padId = app["pad_id"] as? Int ?? 0
    let known = golden["inputs"] as? [String: [[Int]]] ?? [:]
    let outputs = (golden["outputs"] as? [String: [Any]])?["logits"] ?? []
    let perToken = (outputs[0] as? [Any])?.first is [Any]
    let width = perToken ? flat((outputs[0] as? [Any])?.first ?? []).count : flat(outputs[0]).count
    var logits = formula(row[0], mask: row[1], width, perToken)
    for (number, output) in outputs.enumerated() {
      let same = zip(names, row).allSatisfy { name, numbers in
        let wanted = known[name]?[number] ?? []
        let padding = name == "input_ids" ? padId : 0
        return wanted.count <= length && numbers == wanted + Array(repeating: padding, count: length - wanted.count)
      }
      if same { logits.replaceSubrange(0..<flat(output).count, with: flat(output)) }
    }
    let array = MLShapedArray<Float>(scalars: logits, shape: perToken ? [1, length, width] : [1, width])
    return try MLDictionaryFeatureProvider(dictionary: ["logits": MLFeatureValue(shapedArray: array)])
  }

  private func formula(_ ids: [Int], mask: [Int], _ width: Int, _ perToken: Bool) -> [Float] {
    let tokens = ids.enumerated().map { place, id in (0..<width).map { number(id, place, $0) } }
    if perToken { return tokens.flatMap { $0 } }
    let read = zip(tokens, mask).filter { $0.1 == 1 }.map(\.0)
    return (0..<width).map { number in read.reduce(0) { $0 + $1[number] } / Float(read.count) }
  }

  private func number(_ id: Int, _ place: Int, _ column: Int) -> Float {
    let whole: Int = 31 * id + 17 * place + 7 * column
    return Float(whole % 101) / 8
  }

  private func flat(_ value: Any) -> [Float] {
    if let list = value as? [Any] { return list.flatMap(flat) }
    return [(value as? NSNumber)?.floatValue ?? 0]
  }
}
