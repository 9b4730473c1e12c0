/// Whether this device gives the token ids and the outputs that were verified.
public struct SelfTestReport: Codable, Sendable {
  public struct Row: Codable, Sendable {
    public let text: String
    public let idsEqual: Bool
    public internal(set) var difference: Double?  // the largest of an output; nil where the ids differ already
    public internal(set) var milliseconds: Double?
    public let answer: String

    init(text: String, idsEqual: Bool, answer: String) {
      self.text = text
      self.idsEqual = idsEqual
      self.answer = answer
    }
  }

  public let passed: Bool
  public let texts: Int
  public let largestDifference: Double
  public let bound: Double
  public let milliseconds: Double?  // the median
  public let runtime: String
  public let wrong: [String]
  public let rows: [Row]

  init(bound: Double, runtime: String, wrong: [String], rows: [Row]) {
    let times = rows.compactMap(\.milliseconds).sorted()
    passed = wrong.isEmpty
    texts = rows.count
    largestDifference = rows.compactMap(\.difference).max() ?? 0
    self.bound = bound
    milliseconds = times.isEmpty ? nil : times[times.count / 2]
    self.runtime = runtime
    self.wrong = wrong
    self.rows = rows
  }
}
