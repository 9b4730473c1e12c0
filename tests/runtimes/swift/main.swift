// tokenize TOKENIZER.JSON: a line {"text", "pair"?, "max_length"?, "truncation"?, "bare"?} in, a line {"ids", "offsets",
// "special_mask", "type_ids", "texts"} or {"error"} out, as the C++ program of that name. Compiled with the core.
import Foundation

func answer(_ tokenizer: Tokenizer, _ line: String) throws -> String {
  let asked = try Json(parsing: [UInt8](line.utf8))
  let text = try asked.field("text").string
  let most = try asked["max_length"]?.int
  let name = try asked["truncation"]?.string ?? "longest_first"
  guard let truncation = Truncation(rawValue: name) else { throw BundleError("no such truncation: \(name)") }
  let bare = try asked.bool("bare", or: false)
  let pair = try asked["pair"]?.string
  let encoding = try tokenizer.encode(text, pair: pair, maxLength: most, truncation: truncation, withSpecials: !bare)
  let offsets = encoding.offsets.map { "[\($0.lowerBound),\($0.upperBound)]" }.joined(separator: ",")
  return "{\"ids\":\(encoding.ids),\"offsets\":[\(offsets)],"
    + "\"special_mask\":\(encoding.sequences.map { $0 == nil ? 1 : 0 }),\"type_ids\":\(encoding.typeIds),"
    + "\"texts\":\(encoding.sequences.map { $0 ?? -1 })}"
}

func quoted(_ text: String) -> String {
  let escaped = text.unicodeScalars.map { $0.isASCII && $0.value >= 0x20 && $0 != "\"" && $0 != "\\" ? String($0) : "?" }
  return "\"" + escaped.joined() + "\""
}

func say(_ line: String) {
  FileHandle.standardOutput.write(Data((line + "\n").utf8))
}

do {
  let tokenizer = try Tokenizer(file: URL(fileURLWithPath: CommandLine.arguments[1]))
  while let line = readLine() {
    do {
      say(try answer(tokenizer, line))
    } catch let error as JsonError {
      say("{\"error\":\(quoted(error.message))}")
    } catch {
      say("{\"error\":\(quoted("\(error)"))}")
    }
  }
} catch {
  FileHandle.standardError.write(Data("tokenize: \(error)\n".utf8))
  exit(1)
}
