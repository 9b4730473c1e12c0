#include "bert.hpp"

#include <algorithm>
#include <utility>

#include "unicode.hpp"

namespace edgekd {

namespace {

struct Part {
  char32_t c;
  bool inserted;
  int order;
};

// Marks after a letter stand in the order of their classes, those of one class as they came.
void put_in_order(std::vector<Part>& parts) {
  for (auto start = parts.begin(); start != parts.end();) {
    if (start->order == 0) {
      ++start;
      continue;
    }
    auto end = std::find_if(start, parts.end(), [](const Part& part) { return part.order == 0; });
    std::stable_sort(start, end, [](const Part& one, const Part& other) { return one.order < other.order; });
    start = end;
  }
}

void decompose(AlignedText& text) {
  std::vector<Part> parts;
  parts.reserve(text.size());
  for (char32_t c : text.text()) {
    bool first = true;
    for (char32_t part : unicode::decomposed(c)) {
      parts.push_back({part, !first, unicode::combining_class(part)});
      first = false;
    }
  }
  put_in_order(parts);
  std::vector<AlignedText::Change> changes;
  changes.reserve(parts.size());
  for (const Part& part : parts) changes.push_back({part.c, part.inserted ? 1 : 0});
  text.replace(changes);
}

}  // namespace

void BertNormalizer::operator()(AlignedText& text) const {
  if (clean_text) {
    text.keep([](char32_t c) { return !unicode::has(c, tables::kCleaned); });
    text.map([](char32_t c) { return unicode::has(c, tables::kBlank) ? U' ' : c; });
  }
  if (handle_chinese_chars) {
    text.expand([](char32_t c, std::u32string& into) {
      const bool chinese = unicode::has(c, tables::kChinese);
      if (chinese) into.push_back(U' ');
      into.push_back(c);
      if (chinese) into.push_back(U' ');
    });
  }
  if (strip_accents) {
    decompose(text);
    text.keep([](char32_t c) { return !unicode::has(c, tables::kMark); });
  }
  if (lowercase) text.expand([](char32_t c, std::u32string& into) { into += unicode::lowercase(c); });
}

namespace {

// A mark is a word of its own.
void split(const AlignedText& text, uint16_t marks, std::vector<AlignedText>& parts) {
  std::size_t start = 0;  // of the word under way
  for (std::size_t i = 0; i < text.size(); ++i) {
    const bool punctuation = unicode::has(text.text()[i], marks);
    if (!punctuation && !unicode::has(text.text()[i], tables::kSpace)) continue;
    if (start < i) parts.push_back(text.slice({start, i}));
    if (punctuation) parts.push_back(text.slice({i, i + 1}));
    start = i + 1;
  }
  if (start < text.size()) parts.push_back(text.slice({start, text.size()}));
}

}  // namespace

void split_bert(AlignedText text, std::vector<AlignedText>& parts) { split(text, tables::kPunctuation, parts); }
void split_blanks(AlignedText text, std::vector<AlignedText>& parts) { split(text, 0, parts); }

WordPiece::WordPiece(Vocabulary vocabulary, const std::u32string& unknown, std::u32string prefix, std::size_t longest_word)
    : vocabulary_(std::move(vocabulary)), prefix_(std::move(prefix)), longest_word_(longest_word) {
  const auto id = find(vocabulary_, unknown);
  if (!id) throw TokenizerError("unk_token is not in the vocabulary: " + unicode::encode(unknown));
  unknown_ = {*id, unknown, {}};
  for (const auto& [token, number] : vocabulary_) longest_token_ = std::max(longest_token_, token.size());
}

std::optional<Token> WordPiece::longest_at(const std::u32string& word, std::size_t start) const {
  std::u32string piece = start == 0 ? std::u32string() : prefix_;
  const std::size_t ahead = piece.size();
  piece.append(word, start, longest_token_ > ahead ? longest_token_ - ahead : 0);
  for (; piece.size() > ahead; piece.pop_back()) {
    if (auto id = find(vocabulary_, piece)) return Token{*id, piece, {start, start + piece.size() - ahead}};
  }
  return std::nullopt;
}

void WordPiece::tokenize(const std::u32string& word, std::vector<Token>& tokens) const {
  const std::size_t before = tokens.size();
  bool known = word.size() <= longest_word_;
  for (std::size_t start = 0; known && start < word.size();) {
    auto token = longest_at(word, start);
    known = token.has_value();
    if (known) {
      start = token->at.end;
      tokens.push_back(std::move(*token));
    }
  }
  if (known) return;
  tokens.resize(before);  // one unknown piece makes the whole word unknown
  tokens.push_back(unknown_);
  tokens.back().at = {0, word.size()};
}

}  // namespace edgekd
