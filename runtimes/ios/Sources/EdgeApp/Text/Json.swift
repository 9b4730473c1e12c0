/// A JSON value whose texts are code points. Foundation's readers give dictionaries of String, in which two tokens of
/// a vocabulary that differ only in how an accent is written would be one.
enum Json: Sendable {
  case null
  case bool(Bool)
  case number(Double)
  case text(Characters)
  case list([Json])
  case object([(name: Characters, value: Json)])

  init(parsing bytes: [UInt8]) throws {
    var reader = Reader(bytes: bytes)
    self = try reader.document()
  }
}

struct JsonError: Error {
  let message: String
}

extension Json {
  /// A field; nil where it is missing or null.
  subscript(_ name: String) -> Json? {
    guard case .object(let fields) = self else { return nil }
    let wanted = Characters(name)
    guard let found = fields.last(where: { $0.name == wanted })?.value else { return nil }
    if case .null = found { return nil }
    return found
  }

  func has(_ name: String) -> Bool {
    guard case .object(let fields) = self else { return false }
    let wanted = Characters(name)
    return fields.contains { $0.name == wanted }
  }

  func field(_ name: String) throws -> Json {
    guard let found = self[name] else { throw JsonError(message: "'\(name)' is missing") }
    return found
  }

  func bool(_ name: String, or otherwise: Bool) throws -> Bool {
    guard let found = self[name] else { return otherwise }
    guard case .bool(let value) = found else { throw JsonError(message: "'\(name)' is not true or false") }
    return value
  }

  var isNull: Bool {
    if case .null = self { true } else { false }
  }

  var characters: Characters {
    get throws {
      guard case .text(let value) = self else { throw JsonError(message: "a text is missing") }
      return value
    }
  }

  var string: String {
    get throws { try characters.string }
  }

  var double: Double {
    get throws {
      guard case .number(let value) = self else { throw JsonError(message: "a number is missing") }
      return value
    }
  }

  var int: Int {
    get throws {
      guard let value = Int(exactly: try double) else { throw JsonError(message: "a whole number is missing") }
      return value
    }
  }

  var list: [Json] {
    get throws {
      guard case .list(let values) = self else { throw JsonError(message: "a list is missing") }
      return values
    }
  }

  var fields: [(name: Characters, value: Json)] {
    get throws {
      guard case .object(let fields) = self else { throw JsonError(message: "an object is missing") }
      return fields
    }
  }
}

/// RFC 8259, with UTF-8 checked.
private struct Reader {
  let bytes: [UInt8]
  var place = 0

  private static let deepest = 64

  init(bytes: [UInt8]) {
    self.bytes = bytes
  }

  mutating func document() throws -> Json {
    let value = try value(depth: 0)
    skipBlanks()
    guard place == bytes.count else { throw broken("more than one value") }
    return value
  }

  private var next: UInt8? { place < bytes.count ? bytes[place] : nil }

  private func broken(_ what: String) -> JsonError {
    JsonError(message: "\(what) at byte \(place)")
  }

  private mutating func skipBlanks() {
    while let byte = next, byte == 0x20 || byte == 0x0A || byte == 0x0D || byte == 0x09 { place += 1 }
  }

  /// The byte, after blanks, if it is the next one.
  private mutating func takes(_ byte: Unicode.Scalar) -> Bool {
    skipBlanks()
    guard let found = next, UInt32(found) == byte.value else { return false }
    place += 1
    return true
  }

  private mutating func expect(_ byte: Unicode.Scalar) throws {
    guard takes(byte) else { throw broken("no '\(byte)'") }
  }

  private mutating func value(depth: Int) throws -> Json {
    guard depth < Self.deepest else { throw broken("too deep") }
    skipBlanks()
    switch next {
    case UInt8(ascii: "{"): return try object(depth)
    case UInt8(ascii: "["): return try list(depth)
    case UInt8(ascii: "\""): return .text(try text())
    case UInt8(ascii: "t"): return try word("true", .bool(true))
    case UInt8(ascii: "f"): return try word("false", .bool(false))
    case UInt8(ascii: "n"): return try word("null", .null)
    default: return .number(try number())
    }
  }

  private mutating func object(_ depth: Int) throws -> Json {
    try expect("{")
    var fields: [(name: Characters, value: Json)] = []
    if takes("}") { return .object(fields) }
    repeat {
      skipBlanks()
      guard next == UInt8(ascii: "\"") else { throw broken("no name") }
      let name = try text()
      try expect(":")
      fields.append((name, try value(depth: depth + 1)))
    } while takes(",")
    try expect("}")
    return .object(fields)
  }

  private mutating func list(_ depth: Int) throws -> Json {
    try expect("[")
    var values: [Json] = []
    if takes("]") { return .list(values) }
    repeat { values.append(try value(depth: depth + 1)) } while takes(",")
    try expect("]")
    return .list(values)
  }

  private mutating func word(_ word: String, _ value: Json) throws -> Json {
    guard bytes[place...].starts(with: word.utf8) else { throw broken("no value") }
    place += word.utf8.count
    return value
  }

  private mutating func number() throws -> Double {
    let start = place
    while let byte = next, 0x30...0x39 ~= byte || "+-.eE".utf8.contains(byte) { place += 1 }
    guard let value = Double(String(decoding: bytes[start..<place], as: UTF8.self)), value.isFinite else {
      place = start
      throw broken("no value")
    }
    return value
  }

  private mutating func text() throws -> Characters {
    place += 1  // the quotation mark
    var text: Characters = []
    while let byte = next {
      switch byte {
      case UInt8(ascii: "\""):
        place += 1
        return text
      case UInt8(ascii: "\\"):
        text.append(try escaped())
      case 0..<0x20:
        throw broken("a control character")
      default:
        text.append(try character(byte))
      }
    }
    throw broken("an open text")
  }

  private mutating func escaped() throws -> Unicode.Scalar {
    place += 1
    guard let byte = next else { throw broken("an open text") }
    place += 1
    switch byte {
    case UInt8(ascii: "n"): return "\n"
    case UInt8(ascii: "t"): return "\t"
    case UInt8(ascii: "r"): return "\r"
    case UInt8(ascii: "b"): return "\u{8}"
    case UInt8(ascii: "f"): return "\u{C}"
    case UInt8(ascii: "\""), UInt8(ascii: "\\"), UInt8(ascii: "/"): return Unicode.Scalar(byte)
    case UInt8(ascii: "u"):
      var code = try hexadecimal()
      if 0xD800..<0xDC00 ~= code, bytes[place...].starts(with: "\\u".utf8) {
        place += 2
        let low = try hexadecimal()
        guard 0xDC00..<0xE000 ~= low else { throw broken("half a character") }
        code = 0x10000 + (code - 0xD800) << 10 + (low - 0xDC00)
      }
      guard let scalar = Unicode.Scalar(code) else { throw broken("half a character") }
      return scalar
    default: throw broken("an unknown escape")
    }
  }

  private mutating func hexadecimal() throws -> UInt32 {
    guard place + 4 <= bytes.count else { throw broken("an open text") }
    var code: UInt32 = 0
    for byte in bytes[place..<place + 4] {
      guard let digit = Character(Unicode.Scalar(byte)).hexDigitValue else { throw broken("no hexadecimal number") }
      code = code << 4 | UInt32(digit)
    }
    place += 4
    return code
  }

  /// One character of UTF-8.
  private mutating func character(_ first: UInt8) throws -> Unicode.Scalar {
    let length: Int
    switch first {
    case 0..<0x80:
      place += 1
      return Unicode.Scalar(first)
    case 0xC2..<0xE0: length = 2
    case 0xE0..<0xF0: length = 3
    case 0xF0..<0xF5: length = 4
    default: throw broken("no UTF-8")
    }
    guard place + length <= bytes.count else { throw broken("no UTF-8") }
    var code = UInt32(first) & (0xFF >> UInt32(length + 1))
    for byte in bytes[place + 1..<place + length] {
      guard byte & 0xC0 == 0x80 else { throw broken("no UTF-8") }
      code = code << 6 | UInt32(byte & 0x3F)
    }
    let overlong = (length == 3 && code < 0x800) || (length == 4 && code < 0x10000)
    guard !overlong, let scalar = Unicode.Scalar(code) else { throw broken("no UTF-8") }
    place += length
    return scalar
  }
}
