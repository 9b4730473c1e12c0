#if canImport(ExecuTorch)
  import ExecuTorch
  import Foundation

  /// ExecuTorch with XNNPACK, on the CPU. A text of one token is padded to two: the file takes no shorter one.
  actor ExecuTorchEngine: Engine {
    nonisolated let runtime = "ExecuTorch, XNNPACK"

    private let module: Module
    private let inputs: [Settings.Input]

    init(_ model: URL, _ settings: Settings) throws {
      module = Module(filePath: model.path)
      inputs = settings.inputs
      do { try module.load("forward") } catch {
        throw BundleError("\(model.path) cannot be opened (\(error.localizedDescription))")
      }
    }

    func logits(_ row: Row) throws -> [Float] {
      let values: [any ValueConvertible] = inputs.map { input in
        let numbers = row.columns[input.name] ?? []
        let shape = [1, numbers.count]
        if input.dtype == "int32" { return Tensor<Int32>(numbers.map(Int32.init), shape: shape) }
        return Tensor<Int64>(numbers.map(Int64.init), shape: shape)
      }
      let output: Tensor<Float> = try module.forward(values)
      return output.scalars()
    }
  }
#endif
