import Foundation

/// tokenizer.json to a Tokenizer: the one place that knows the format. What is not written here is refused by its name.
extension Tokenizer {
  init(file: URL) throws {
    let data: Data
    do { data = try Data(contentsOf: file) } catch {
      throw BundleError("\(file.path) cannot be opened (\(error.localizedDescription))")
    }
    do { try self.init(json: Json(parsing: [UInt8](data))) } catch let error as JsonError {
      throw BundleError("\(file.path) is no tokenizer.json: \(error.message)")
    }
  }

  private init(json: Json) throws {
    model = try Self.model(json.field("model"))
    if let part = json["normalizer"] { try addNormalizers(part) }
    if let part = json["pre_tokenizer"] { try addPreTokenizers(part) }
    if let part = json["post_processor"] { try setPostProcessor(part) }
    if let tokens = json["added_tokens"] { try addTokens(tokens) }
  }

  private static func refused(_ kind: String, _ what: String) -> BundleError {
    BundleError("this tokenizer cannot be run here: \(kind) \(what) is not written")
  }

  private static func type(_ part: Json) throws -> String {
    try part["type"]?.string ?? "(no type)"
  }

  // MARK: Normalizers

  private mutating func addNormalizers(_ part: Json) throws {
    switch try Self.type(part) {
    case "Sequence":
      for one in try part.field("normalizers").list { try addNormalizers(one) }
    case "BertNormalizer":
      var bert = BertNormalizer()
      bert.cleanText = try part.bool("clean_text", or: true)
      bert.handleChineseCharacters = try part.bool("handle_chinese_chars", or: true)
      bert.lowercase = try part.bool("lowercase", or: true)
      bert.stripAccents = try part.bool("strip_accents", or: bert.lowercase)
      normalizers.append(bert)
    case "Lowercase":
      normalizers.append(
        BertNormalizer(cleanText: false, handleChineseCharacters: false, stripAccents: false, lowercase: true))
    case "Replace":
      normalizers.append(try Self.replace(part))
    case "Prepend":
      normalizers.append(Prepend(before: try part.field("prepend").characters))
    case let type:
      throw Self.refused("normalizer", type)
    }
  }

  private static func replace(_ part: Json) throws -> Replace {
    let pattern = try part.field("pattern")
    let content = try part.field("content").characters
    if let text = try pattern["String"]?.characters, !text.isEmpty { return Replace(pattern: text, content: content) }
    let expression = try pattern["Regex"]?.string
    if expression == " {2,}" {  // the one expression that tokenizers are made with
      return Replace(pattern: [" "], repeated: 2, content: content)
    }
    throw refused("normalizer Replace of", expression ?? "nothing")
  }

  // MARK: Pre-tokenizers

  private mutating func addPreTokenizers(_ part: Json) throws {
    switch try Self.type(part) {
    case "Sequence":
      for one in try part.field("pretokenizers").list { try addPreTokenizers(one) }
    case "BertPreTokenizer":
      preTokenizers.append(BertPreTokenizer())
    case "ByteLevel":
      let prefix = try part.bool("add_prefix_space", or: true)
      preTokenizers.append(ByteLevel(addPrefixSpace: prefix, useRegex: try part.bool("use_regex", or: true)))
    case "Metaspace":
      preTokenizers.append(try Self.metaspace(part))
    case let type:
      throw Self.refused("pre-tokenizer", type)
    }
  }

  private static func metaspace(_ part: Json) throws -> Metaspace {
    let replacement = try part.field("replacement").characters
    guard replacement.count == 1 else { throw BundleError("Metaspace's replacement is not one character") }
    // Older files say add_prefix_space instead.
    let older = try part.bool("add_prefix_space", or: true) ? "always" : "never"
    let name = try part["prepend_scheme"]?.string ?? older
    guard let scheme = Metaspace.Scheme(rawValue: name) else { throw refused("prepend_scheme", name) }
    return Metaspace(replacement: replacement[0], prepend: scheme, splits: try part.bool("split", or: true))
  }

  // MARK: Models

  private static func model(_ part: Json) throws -> any TokenModel {
    switch try modelType(part) {
    case "WordPiece":
      return try WordPiece(
        vocabulary: vocabulary(part), unknown: part.field("unk_token").characters,
        prefix: part.field("continuing_subword_prefix").characters,
        longestWord: part.field("max_input_chars_per_word").int)
    case "BPE":
      return try bpe(part)
    case "Unigram":
      let entries = try part.field("vocab").list.map { entry in
        let pair = try entry.list
        guard pair.count == 2 else { throw JsonError(message: "an entry of 'vocab' is not a token and its score") }
        return try (text: pair[0].characters, score: pair[1].double)
      }
      let unknown = try part["unk_id"]?.int
      return Unigram(vocabulary: entries, unknown: unknown, byteFallback: try part.bool("byte_fallback", or: false))
    case let type:
      throw refused("model", type)
    }
  }

  /// Old files give a model no type: each kind is told by a field that it alone has.
  private static func modelType(_ part: Json) throws -> String {
    if let type = part["type"] { return try type.string }
    if part.has("merges") { return "BPE" }
    return part.has("max_input_chars_per_word") ? "WordPiece" : "(no type)"
  }

  private static func vocabulary(_ part: Json) throws -> Vocabulary {
    let fields = try part.field("vocab").fields
    return try Vocabulary(fields.map { ($0.name, try $0.value.int) }, uniquingKeysWith: { _, last in last })
  }

  private static func bpe(_ part: Json) throws -> Bpe {
    for name in ["continuing_subword_prefix", "end_of_word_suffix"] {
      if let text = try part[name]?.characters, !text.isEmpty { throw refused("model BPE with", name) }
    }
    if let dropout = try part["dropout"]?.double, dropout != 0 { throw refused("model BPE with", "dropout") }
    var options = Bpe.Options()
    options.unknown = try part["unk_token"]?.characters
    options.fuseUnknown = try part.bool("fuse_unk", or: false)
    options.byteFallback = try part.bool("byte_fallback", or: false)
    options.ignoreMerges = try part.bool("ignore_merges", or: false)
    let merges = try part.field("merges").list.map(merge)
    return try Bpe(vocabulary: vocabulary(part), merges: merges, options: options)
  }

  /// A merge is "a b" in old files and ["a", "b"] in new ones.
  private static func merge(_ merge: Json) throws -> (Characters, Characters) {
    if case .list(let pair) = merge, pair.count == 2 { return (try pair[0].characters, try pair[1].characters) }
    let both = try merge.characters
    guard let gap = both.firstIndex(of: " ") else {
      throw BundleError("a merge is not of two tokens: \(both.string)")
    }
    return (Characters(both[..<gap]), Characters(both[(gap + 1)...]))
  }

  // MARK: Post-processors

  private mutating func setPostProcessor(_ part: Json) throws {
    switch try Self.type(part) {
    case "Sequence":
      for one in try part.field("processors").list { try setPostProcessor(one) }
    case "TemplateProcessing":
      let known = try part.field("special_tokens")
      postProcessor.single = try Self.template(part.field("single"), known)
      postProcessor.pair = try Self.template(part.field("pair"), known)
    case "BertProcessing":
      try setAround(part, secondType: 1, doubled: false)
    case "RobertaProcessing":
      try setAround(part, secondType: 0, doubled: true)
      try setTrimming(part)
    case "ByteLevel":
      try setTrimming(part)
    case let type:
      throw Self.refused("post-processor", type)
    }
  }

  private static func template(_ slots: Json, _ known: Json) throws -> [Slot] {
    try slots.list.map { slot in
      if let sequence = slot["Sequence"] {
        let number = try sequence.field("id").string == "A" ? 0 : 1
        return .text(number, type: try sequence.field("type_id").int)
      }
      let token = try slot.field("SpecialToken")
      let ids = try known.field(token.field("id").string).field("ids").list.map { try $0.int }
      return .special(ids, type: try token.field("type_id").int)
    }
  }

  private mutating func setAround(_ part: Json, secondType: Int, doubled: Bool) throws {
    let cls = try Self.idOfPair(part.field("cls"))
    let sep = try Self.idOfPair(part.field("sep"))
    postProcessor.single = [.special([cls], type: 0), .text(0, type: 0), .special([sep], type: 0)]
    let between: [Slot] = doubled ? [.special([sep], type: 0)] : []
    postProcessor.pair = postProcessor.single + between + [.text(1, type: secondType), .special([sep], type: secondType)]
  }

  private static func idOfPair(_ part: Json) throws -> Int {
    guard let id = try part.list.last else { throw JsonError(message: "a token's id is missing") }
    return try id.int
  }

  private mutating func setTrimming(_ part: Json) throws {
    guard try part.bool("trim_offsets", or: true) else { return }
    postProcessor.trimming = Trimming(addPrefixSpace: try part.bool("add_prefix_space", or: true))
  }

  // MARK: Added tokens

  private mutating func addTokens(_ tokens: Json) throws {
    var raw: [AddedToken] = []
    var normalized: [AddedToken] = []
    for special in [true, false] {  // where two are the same text, the special one is found
      for token in try tokens.list where try token.bool("special", or: false) == special {
        var added = try addedToken(token)
        if added.normalized {
          added.content = normal(added.content)
          normalized.append(added)
        } else {
          raw.append(added)
        }
      }
    }
    addedRaw = AddedTokens(raw)
    addedNormalized = AddedTokens(normalized)
  }

  private func addedToken(_ token: Json) throws -> AddedToken {
    let content = try token.field("content").characters
    let special = try token.bool("special", or: false)
    return AddedToken(
      id: try model.id(of: content) ?? token.field("id").int, content: content,
      singleWord: try token.bool("single_word", or: false), lstrip: try token.bool("lstrip", or: false),
      rstrip: try token.bool("rstrip", or: false), normalized: try token.bool("normalized", or: !special))
  }

  private func normal(_ content: Characters) -> Characters {
    var text = AlignedText(content)
    for normalizer in normalizers { normalizer.normalize(&text) }
    return text.text
  }
}
