// tokenizer.json to a Tokenizer: the one place that knows the format. What is not written here is refused by its name.
#include <fstream>
#include <nlohmann/json.hpp>
#include <utility>

#include "bert.hpp"
#include "bpe.hpp"
#include "precompiled.hpp"
#include "tokenizer.hpp"
#include "unicode.hpp"
#include "unigram.hpp"

namespace edgekd {

namespace {

using nlohmann::json;

std::string type_of(const json& part) { return part.value("type", std::string("(no type)")); }

[[noreturn]] void refuse(const std::string& kind, const std::string& what) {
  throw TokenizerError("this tokenizer cannot be run here: " + kind + " " + what + " is not written");
}

std::u32string text_of(const json& value) { return unicode::decode(value.get_ref<const std::string&>()); }

// A field that may be missing or null.
template <typename Value>
Value field(const json& part, const char* name, Value otherwise) {
  auto found = part.find(name);
  return found == part.end() || found->is_null() ? otherwise : found->get<Value>();
}

bool given(const json& part, const char* name) { return part.contains(name) && !part[name].is_null(); }

// --- normalizers ---

Replace replace_of(const json& part) {
  const json& pattern = part.at("pattern");
  const std::u32string content = text_of(part.at("content"));
  if (pattern.contains("String") && pattern["String"] != "") return {text_of(pattern["String"]), 0, content};
  if (pattern == json{{"Regex", " {2,}"}}) return {U" ", 2, content};  // the one expression that tokenizers are made with
  refuse("normalizer Replace of", pattern.dump());
}

std::string base64_decoded(const std::string& text) {
  const std::string_view digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string bytes;
  uint32_t bits = 0;
  int count = 0;
  for (const char c : text) {
    if (c == '=') break;
    const std::size_t digit = digits.find(c);
    if (digit == std::string_view::npos) throw TokenizerError("precompiled_charsmap is not base64");
    bits = bits << 6 | static_cast<uint32_t>(digit);
    count += 6;
    if (count < 8) continue;
    count -= 8;
    bytes.push_back(static_cast<char>(bits >> count & 0xFF));
  }
  return bytes;
}

void add_normalizers(const json& part, std::vector<Normalizer>& normalizers) {
  const std::string type = type_of(part);
  if (type == "Sequence") {
    for (const json& one : part.at("normalizers")) add_normalizers(one, normalizers);
  } else if (type == "BertNormalizer") {
    BertNormalizer bert;
    bert.clean_text = field(part, "clean_text", true);
    bert.handle_chinese_chars = field(part, "handle_chinese_chars", true);
    bert.lowercase = field(part, "lowercase", true);
    bert.strip_accents = field(part, "strip_accents", bert.lowercase);
    normalizers.push_back(bert);
  } else if (type == "Lowercase") {
    normalizers.push_back(BertNormalizer{false, false, false, true});
  } else if (type == "Replace") {
    normalizers.push_back(replace_of(part));
  } else if (type == "Precompiled") {
    normalizers.push_back(Precompiled(base64_decoded(part.at("precompiled_charsmap").get<std::string>())));
  } else if (type == "Strip") {
    normalizers.push_back(Strip{field(part, "strip_left", true), field(part, "strip_right", true)});
  } else if (type == "Prepend") {
    const std::u32string before = text_of(part.at("prepend"));
    normalizers.push_back([before](AlignedText& text) { text.prepend(before); });
  } else {
    refuse("normalizer", type);
  }
}

// --- pre-tokenizers ---

Metaspace metaspace_of(const json& part) {
  Metaspace metaspace;
  const std::u32string replacement = text_of(part.at("replacement"));
  if (replacement.size() != 1) throw TokenizerError("Metaspace's replacement is not one character");
  metaspace.replacement = replacement[0];
  // Older files say add_prefix_space instead.
  const std::string scheme = field<std::string>(part, "prepend_scheme", field(part, "add_prefix_space", true) ? "always" : "never");
  if (scheme != "always" && scheme != "first" && scheme != "never") refuse("prepend_scheme", scheme);
  metaspace.prepend = scheme == "always" ? Metaspace::Prepend::kAlways
                      : scheme == "first" ? Metaspace::Prepend::kFirst
                                          : Metaspace::Prepend::kNever;
  metaspace.split = field(part, "split", true);
  return metaspace;
}

void add_pre_tokenizers(const json& part, std::vector<PreTokenizer>& pre_tokenizers) {
  const std::string type = type_of(part);
  if (type == "Sequence") {
    for (const json& one : part.at("pretokenizers")) add_pre_tokenizers(one, pre_tokenizers);
  } else if (type == "BertPreTokenizer") {
    pre_tokenizers.push_back(split_bert);
  } else if (type == "WhitespaceSplit") {
    pre_tokenizers.push_back(split_blanks);
  } else if (type == "ByteLevel") {
    pre_tokenizers.push_back(ByteLevel{field(part, "add_prefix_space", true), field(part, "use_regex", true)});
  } else if (type == "Metaspace") {
    pre_tokenizers.push_back(metaspace_of(part));
  } else {
    refuse("pre-tokenizer", type);
  }
}

// --- models ---

Vocabulary vocabulary_of(const json& part) {
  Vocabulary vocabulary;
  vocabulary.reserve(part.size());
  for (const auto& [token, id] : part.items()) vocabulary.emplace(unicode::decode(token), id.get<int64_t>());
  return vocabulary;
}

std::unique_ptr<Model> word_piece_of(const json& part) {
  return std::make_unique<WordPiece>(vocabulary_of(part.at("vocab")), text_of(part.at("unk_token")),
                                     text_of(part.at("continuing_subword_prefix")),
                                     part.at("max_input_chars_per_word").get<std::size_t>());
}

// A merge is "a b" in old files and ["a", "b"] in new ones.
std::pair<std::u32string, std::u32string> merge_of(const json& merge) {
  if (merge.is_array()) return {text_of(merge.at(0)), text_of(merge.at(1))};
  const std::u32string both = text_of(merge);
  const std::size_t gap = both.find(U' ');
  if (gap == std::u32string::npos) throw TokenizerError("a merge is not of two tokens: " + merge.dump());
  return {both.substr(0, gap), both.substr(gap + 1)};
}

std::unique_ptr<Model> bpe_of(const json& part) {
  for (const char* name : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (!field(part, name, std::string()).empty()) refuse("model BPE with", name);
  }
  if (field(part, "dropout", 0.0) != 0.0) refuse("model BPE with", "dropout");
  Bpe::Merges merges;
  for (const json& merge : part.at("merges")) merges.push_back(merge_of(merge));
  Bpe::Options options;
  if (given(part, "unk_token")) options.unknown = text_of(part["unk_token"]);
  options.fuse_unknown = field(part, "fuse_unk", false);
  options.byte_fallback = field(part, "byte_fallback", false);
  options.ignore_merges = field(part, "ignore_merges", false);
  return std::make_unique<Bpe>(vocabulary_of(part.at("vocab")), merges, options);
}

std::unique_ptr<Model> unigram_of(const json& part) {
  std::vector<Unigram::Entry> vocabulary;
  for (const json& entry : part.at("vocab")) vocabulary.push_back({text_of(entry.at(0)), entry.at(1).get<double>()});
  std::optional<int64_t> unknown;
  if (given(part, "unk_id")) unknown = part["unk_id"].get<int64_t>();
  return std::make_unique<Unigram>(vocabulary, unknown, field(part, "byte_fallback", false));
}

// Old files give a model no type: each kind is told by a field that it alone has.
std::string model_type(const json& part) {
  if (given(part, "type")) return type_of(part);
  if (part.contains("merges")) return "BPE";
  return part.contains("max_input_chars_per_word") ? "WordPiece" : "(no type)";
}

std::unique_ptr<Model> model_of(const json& part) {
  const std::string type = model_type(part);
  if (type == "WordPiece") return word_piece_of(part);
  if (type == "BPE") return bpe_of(part);
  if (type == "Unigram") return unigram_of(part);
  refuse("model", type);
}

// --- post-processors ---

Slot special(int64_t id, int64_t type) { return {std::nullopt, {id}, type}; }
Slot text(int number, int64_t type) { return {number, {}, type}; }

Template template_of(const json& slots, const json& special_tokens) {
  Template result;
  for (const json& slot : slots) {
    if (slot.contains("Sequence")) {
      const json& sequence = slot["Sequence"];
      result.push_back(text(sequence.at("id") == "A" ? 0 : 1, sequence.at("type_id").get<int64_t>()));
    } else {
      const json& token = slot.at("SpecialToken");
      const json& known = special_tokens.at(token.at("id").get<std::string>());
      result.push_back({std::nullopt, known.at("ids").get<std::vector<int64_t>>(), token.at("type_id").get<int64_t>()});
    }
  }
  return result;
}

void set_around(PostProcessor& processor, const json& part) {
  const bool roberta = type_of(part) == "RobertaProcessing";
  const int64_t cls = part.at("cls").at(1), sep = part.at("sep").at(1), second = roberta ? 0 : 1;
  processor.single = {special(cls, 0), text(0, 0), special(sep, 0)};
  processor.pair = processor.single;
  if (roberta) processor.pair.push_back(special(sep, 0));
  processor.pair.push_back(text(1, second));
  processor.pair.push_back(special(sep, second));
}

void set_trimming(PostProcessor& processor, const json& part) {
  if (field(part, "trim_offsets", true)) processor.trimming = Trimming{field(part, "add_prefix_space", true)};
}

void set_post_processor(PostProcessor& processor, const json& part) {
  const std::string type = type_of(part);
  if (type == "Sequence") {
    for (const json& one : part.at("processors")) set_post_processor(processor, one);
  } else if (type == "TemplateProcessing") {
    processor.single = template_of(part.at("single"), part.at("special_tokens"));
    processor.pair = template_of(part.at("pair"), part.at("special_tokens"));
  } else if (type == "BertProcessing") {
    set_around(processor, part);
  } else if (type == "RobertaProcessing") {
    set_around(processor, part);
    set_trimming(processor, part);
  } else if (type == "ByteLevel") {
    set_trimming(processor, part);
  } else {
    refuse("post-processor", type);
  }
}

}  // namespace

class Loader {
 public:
  static Tokenizer load(const json& file) {
    Tokenizer tokenizer;
    tokenizer.model_ = model_of(file.at("model"));
    if (given(file, "normalizer")) add_normalizers(file["normalizer"], tokenizer.normalizers_);
    if (given(file, "pre_tokenizer")) add_pre_tokenizers(file["pre_tokenizer"], tokenizer.pre_tokenizers_);
    if (given(file, "post_processor")) set_post_processor(tokenizer.post_processor_, file["post_processor"]);
    if (given(file, "added_tokens")) add_tokens(file["added_tokens"], tokenizer);
    return tokenizer;
  }

 private:
  static void add_tokens(const json& tokens, Tokenizer& tokenizer) {
    std::vector<AddedToken> raw, normalized;
    for (const bool special : {true, false}) {  // where two are the same text, the special one is found
      for (const json& token : tokens) {
        if (field(token, "special", false) != special) continue;
        AddedToken added = token_of(token, *tokenizer.model_);
        if (added.normalized) added.content = normal(added.content, tokenizer.normalizers_);
        (added.normalized ? normalized : raw).push_back(std::move(added));
      }
    }
    tokenizer.added_raw_ = AddedTokens(std::move(raw));
    tokenizer.added_normalized_ = AddedTokens(std::move(normalized));
  }

  static AddedToken token_of(const json& token, const Model& model) {
    AddedToken added;
    added.content = text_of(token.at("content"));
    added.id = model.id_of(added.content).value_or(token.at("id").get<int64_t>());
    added.single_word = field(token, "single_word", false);
    added.lstrip = field(token, "lstrip", false);
    added.rstrip = field(token, "rstrip", false);
    added.normalized = field(token, "normalized", !field(token, "special", false));
    return added;
  }

  static std::u32string normal(const std::u32string& content, const std::vector<Normalizer>& normalizers) {
    AlignedText text(content);
    for (const Normalizer& normalizer : normalizers) normalizer(text);
    return text.text();
  }
};

Tokenizer Tokenizer::load(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw TokenizerError("cannot be opened: " + path);
  try {
    return Loader::load(json::parse(file));
  } catch (const json::exception& error) {
    throw TokenizerError(path + " is no tokenizer.json: " + error.what());
  }
}

}  // namespace edgekd
