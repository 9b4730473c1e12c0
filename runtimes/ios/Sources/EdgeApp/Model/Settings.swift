import Foundation

/// app.json: all that the library knows of the model beside the file itself.
struct Settings: Decodable, Sendable {
  struct Input: Decodable, Sendable {
    let name: String
    let dtype: String
  }

  static let schema = "edgekd/app/1"

  let schema: String
  let name: String
  let task: String
  let target: String
  let file: String
  let inputs: [Input]
  let lengths: [Int]  // not empty: the file takes only these
  let maxLength: Int
  let padId: Int
  let labels: [String]
  let bound: Double  // of the golden outputs
  let mayBeNone: Bool?  // for question answering
  let longestAnswer: Int?
  let overlap: Int?

  init(folder: URL) throws {
    let file = folder.appendingPathComponent("app.json")
    let reader = JSONDecoder()
    reader.keyDecodingStrategy = .convertFromSnakeCase
    do { self = try reader.decode(Settings.self, from: Data(contentsOf: file)) } catch {
      throw BundleError("\(folder.path): no bundle (\(error.localizedDescription))")
    }
    guard schema == Self.schema else {
      throw BundleError("\(folder.path): app.json is not of \(Self.schema): make the bundle with this library's edgekd")
    }
  }

  /// The smallest length of the file that holds so many tokens.
  func length(for tokens: Int) -> Int {
    lengths.filter { $0 >= tokens }.min() ?? tokens
  }
}
