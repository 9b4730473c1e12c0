import Foundation

/// The bundle is not one, is for another task, or its model cannot be run; the message says what, where and what to do.
public struct BundleError: Error, Equatable, LocalizedError, CustomStringConvertible {
  public let message: String

  init(_ message: String) {
    self.message = message
  }

  public var description: String { message }
  public var errorDescription: String? { message }
}
