// What the library calls of ExecuTorch's Swift package, declared as there. The model is its file, a line of JSON: how wide
// an output of a token is. The numbers are those of CoreML.swift beside this.
import Foundation

public protocol ValueConvertible {}
public protocol ValueSequenceConstructible { init(_ values: [Value]) throws }
public protocol Scalar {}
extension Float: Scalar {}
extension Int32: Scalar {}
extension Int64: Scalar {}

public class Value: NSObject {
  fileprivate let numbers: [Float]
  fileprivate init(numbers: [Float]) { self.numbers = numbers }
}

public final class Tensor<T: Scalar>: ValueConvertible {
  public let shape: [Int]
  private let numbers: [T]

  public init(_ scalars: [T], shape: [Int] = []) {
    numbers = scalars
    self.shape = shape
    precondition(scalars.count == shape.reduce(1, *), "the numbers do not fill the shape")
  }

  public func scalars() -> [T] { numbers }
}

extension Tensor: ValueSequenceConstructible where T == Float {
  public convenience init(_ values: [Value]) throws {
    self.init(values[0].numbers, shape: [values[0].numbers.count])
  }
}

public struct Broken: Error, LocalizedError {
  public var errorDescription: String? { "no such file" }
}

public class Module: NSObject {
  private let file: String
  private var width = 0

  public init(filePath: String) { file = filePath }

  public func load(_ method: String) throws {
    guard method == "forward", let text = try? String(contentsOfFile: file, encoding: .utf8), let number = Int(text) else {
      throw Broken()
    }
    width = number
  }

  public func forward<Output: ValueSequenceConstructible>(_ inputs: [any ValueConvertible]) throws -> Output {
    guard let ids = (inputs[0] as? Tensor<Int64>)?.scalars() else { throw Broken() }
    var numbers: [Float] = []
    for (place, id) in ids.enumerated() {
      for column in 0..<width { numbers.append(number(Int(id), place, column)) }
    }
    return try Output([Value(numbers: numbers)])
  }

  public func forward(_ inputs: [any ValueConvertible]) throws -> [Value] { throw Broken() }

  private func number(_ id: Int, _ place: Int, _ column: Int) -> Float {
    let whole: Int = 31 * id + 17 * place + 7 * column
    return Float(whole % 101) / 8
  }
}
