#include "tokenizer.hpp"

#include <stdexcept>
#include <utility>

#include "unicode.hpp"

namespace edgekd {

namespace {

std::u32string decoded(std::string_view text) {
  try {
    return unicode::decode(text);
  } catch (const std::invalid_argument& error) {
    throw TokenizerError(error.what());
  }
}

std::vector<AlignedText> words_of(AlignedText text, const std::vector<PreTokenizer>& pre_tokenizers) {
  std::vector<AlignedText> words;
  words.push_back(std::move(text));
  for (const PreTokenizer& pre_tokenizer : pre_tokenizers) {
    std::vector<AlignedText> parts;
    for (AlignedText& word : words) {
      if (!word.empty()) pre_tokenizer(std::move(word), parts);
    }
    words = std::move(parts);
  }
  return words;
}

void append(const std::vector<Token>& tokens, int text, int64_t type, Encoding& encoding) {
  for (const Token& token : tokens) {
    encoding.ids.push_back(token.id);
    encoding.offsets.push_back(token.at);
    encoding.special_mask.push_back(0);
    encoding.type_ids.push_back(type);
    encoding.texts.push_back(text);
  }
}

void append_special(const Slot& slot, Encoding& encoding) {
  for (int64_t id : slot.ids) {
    encoding.ids.push_back(id);
    encoding.offsets.push_back({});
    encoding.special_mask.push_back(1);
    encoding.type_ids.push_back(slot.type);
    encoding.texts.push_back(-1);
  }
}

}  // namespace

Encoding Tokenizer::encode(std::string_view text, std::size_t max_length) const {
  return finished(post_processor_.single, tokens_of(text), nullptr, max_length, Truncation::kLongestFirst);
}

Encoding Tokenizer::encode_pair(std::string_view first, std::string_view second, std::size_t max_length,
                                Truncation truncation) const {
  std::vector<Token> other = tokens_of(second);
  return finished(post_processor_.pair, tokens_of(first), &other, max_length, truncation);
}

Encoding Tokenizer::encode_bare(std::string_view text) const {
  Template bare;
  for (const Slot& slot : post_processor_.single) {
    if (slot.text) bare.push_back(slot);
  }
  return finished(bare, tokens_of(text), nullptr, kUnlimited, Truncation::kLongestFirst);
}

std::vector<Piece> Tokenizer::pieces_of(std::string_view text) const {
  std::vector<Piece> pieces;
  for (Piece& raw : added_raw_.split(AlignedText(decoded(text)))) {
    if (raw.token) {
      pieces.push_back(std::move(raw));
      continue;
    }
    for (const Normalizer& normalizer : normalizers_) normalizer(raw.text);
    for (Piece& piece : added_normalized_.split(raw.text)) pieces.push_back(std::move(piece));
  }
  return pieces;
}

std::vector<Token> Tokenizer::tokens_of(std::string_view text) const {
  std::vector<Token> tokens;
  for (Piece& piece : pieces_of(text)) {
    if (piece.token) {
      tokens.push_back({*piece.token, piece.text.text(), piece.text.original({0, piece.text.size()})});
      continue;
    }
    for (const AlignedText& word : words_of(std::move(piece.text), pre_tokenizers_)) {
      if (word.empty()) continue;
      const std::size_t before = tokens.size();
      model_->tokenize(word.text(), tokens);
      for (std::size_t i = before; i < tokens.size(); ++i) tokens[i].at = word.original(tokens[i].at);
    }
  }
  return tokens;
}

Encoding Tokenizer::finished(const Template& slots, std::vector<Token> first, std::vector<Token>* second,
                             std::size_t max_length, Truncation truncation) const {
  const std::size_t added = added_by(slots);
  if (max_length < added) {
    throw TokenizerError("max_length " + std::to_string(max_length) + " does not hold the " + std::to_string(added) +
                         " special tokens");
  }
  truncate(first, second, max_length - added, truncation);
  if (post_processor_.trimming) {
    trim(*post_processor_.trimming, first);
    if (second != nullptr) trim(*post_processor_.trimming, *second);
  }
  Encoding encoding;
  for (const Slot& slot : slots) {
    if (slot.text) append(*slot.text == 0 ? first : *second, *slot.text, slot.type, encoding);
    append_special(slot, encoding);
  }
  return encoding;
}

}  // namespace edgekd
