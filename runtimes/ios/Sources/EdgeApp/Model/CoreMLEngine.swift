#if canImport(CoreML)
  import CoreML
  import Foundation

  /// Core ML. A file for several lengths has a function for each: `main` for the longest, `tokens_<length>` for others.
  ///
  /// It runs on the CPU, where the outputs were verified: the arithmetic is float32, which the neural engine does not
  /// have and the GPU rounds otherwise. An `.mlmodelc` beside the `.mlpackage` is used as it is; without one the package
  /// is compiled each time it is opened.
  actor CoreMLEngine: Engine {
    nonisolated let runtime = "Core ML, \(ProcessInfo.processInfo.operatingSystemVersionString), CPU"

    private let compiled: URL
    private let isOwn: Bool
    private let names: [String]
    private let lengths: [Int]
    private var functions: [Int: MLModel] = [:]

    init(_ model: URL, _ settings: Settings) async throws {
      let ready = model.deletingPathExtension().appendingPathExtension("mlmodelc")
      isOwn = !FileManager.default.fileExists(atPath: ready.path)
      do { compiled = isOwn ? try await MLModel.compileModel(at: model) : ready } catch {
        throw BundleError("\(model.path) cannot be compiled (\(error.localizedDescription))")
      }
      names = settings.inputs.map(\.name)
      lengths = settings.lengths
      _ = try function(for: lengths.max() ?? 0)
    }

    deinit {
      if isOwn { try? FileManager.default.removeItem(at: compiled) }
    }

    func logits(_ row: Row) throws -> [Float] {
      let features = names.map { name in
        let numbers = (row.columns[name] ?? []).map(Int32.init)
        return (name, MLFeatureValue(shapedArray: MLShapedArray<Int32>(scalars: numbers, shape: [1, numbers.count])))
      }
      let input = try MLDictionaryFeatureProvider(dictionary: Dictionary(uniqueKeysWithValues: features))
      let output = try function(for: row.length).prediction(from: input)
      guard let logits = output.featureValue(for: "logits")?.shapedArrayValue(of: Float.self) else {
        throw BundleError("the model has no output 'logits'")
      }
      return logits.scalars
    }

    /// Opened when a text of its length comes first.
    private func function(for length: Int) throws -> MLModel {
      if let known = functions[length] { return known }
      let configuration = MLModelConfiguration()
      configuration.computeUnits = .cpuOnly
      if lengths.count > 1 {
        guard #available(iOS 18, macOS 15, tvOS 18, watchOS 11, visionOS 2, *) else {
          throw BundleError("a model of several lengths needs iOS 18 or macOS 15")
        }
        configuration.functionName = length == lengths.max() ? "main" : "tokens_\(length)"
      }
      do {
        let model = try MLModel(contentsOf: compiled, configuration: configuration)
        functions[length] = model
        return model
      } catch {
        throw BundleError("\(compiled.path) cannot be opened (\(error.localizedDescription))")
      }
    }
  }
#endif
