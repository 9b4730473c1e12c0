#include "unigram.hpp"

#include <algorithm>
#include <limits>

#include "unicode.hpp"

namespace edgekd {

std::size_t Replace::match(const std::u32string& text, std::size_t place) const {
  if (repeated == 0) return text.compare(place, pattern.size(), pattern) == 0 ? pattern.size() : 0;
  std::size_t end = place;
  while (end < text.size() && text[end] == pattern[0]) ++end;
  return end - place >= repeated ? end - place : 0;
}

void Replace::operator()(AlignedText& text) const {
  std::vector<AlignedText::Piece> pieces;
  bool any = false;
  for (std::size_t place = 0; place < text.size();) {
    const std::size_t length = match(text.text(), place);
    pieces.push_back({{place, place + std::max<std::size_t>(length, 1)}, length > 0});
    any = any || length > 0;
    place = pieces.back().part.end;
  }
  if (any) text.substitute(pieces, content);
}

void Strip::operator()(AlignedText& text) const {
  const auto blank = [&](std::size_t i) { return unicode::has(text.text()[i], tables::kSpace); };
  std::size_t start = 0, end = text.size();
  while (left && start < end && blank(start)) ++start;
  while (right && end > start && blank(end - 1)) --end;
  if (end - start < text.size()) text = text.slice({start, end});
}

void Metaspace::operator()(AlignedText text, std::vector<AlignedText>& parts) const {
  text.map([this](char32_t c) { return c == U' ' ? replacement : c; });
  const bool first = text.original({0, 1}).start == 0;
  const bool wanted = prepend == Prepend::kAlways || (prepend == Prepend::kFirst && first);
  if (wanted && text.text().front() != replacement) text.prepend({&replacement, 1});
  std::size_t start = 0;
  for (std::size_t i = 1; split && i < text.size(); ++i) {
    if (text.text()[i] != replacement) continue;
    parts.push_back(text.slice({start, i}));
    start = i;
  }
  parts.push_back(text.slice({start, text.size()}));
}

Unigram::Unigram(const std::vector<Entry>& vocabulary, std::optional<int64_t> unknown, bool byte_fallback)
    : unknown_(unknown), byte_fallback_(byte_fallback) {
  constexpr double kUnknownPenalty = 10;
  double least = std::numeric_limits<double>::infinity();
  for (std::size_t id = 0; id < vocabulary.size(); ++id) {
    const Entry& entry = vocabulary[id];
    vocabulary_[entry.text] = {static_cast<int64_t>(id), entry.score};
    longest_ = std::max(longest_, entry.text.size());
    least = std::min(least, entry.score);
  }
  unknown_score_ = least - kUnknownPenalty;
}

std::optional<int64_t> Unigram::id_of(const std::u32string& token) const {
  auto found = vocabulary_.find(token);
  return found == vocabulary_.end() ? std::nullopt : std::optional<int64_t>(found->second.id);
}

std::vector<Unigram::Best> Unigram::best_paths(const std::u32string& word) const {
  std::vector<Best> best(word.size() + 1);
  auto offer = [&](std::size_t start, std::size_t end, double score, bool unknown) {
    const double sum = score + best[start].score;
    if (!best[end].reached || sum > best[end].score) best[end] = {start, sum, true, unknown};
  };
  for (std::size_t start = 0; start < word.size(); ++start) {
    bool single = false;  // whether a token is this one character
    std::u32string piece;
    for (std::size_t end = start + 1; end <= word.size() && end - start <= longest_; ++end) {
      piece.push_back(word[end - 1]);
      auto found = vocabulary_.find(piece);
      if (found == vocabulary_.end()) continue;
      offer(start, end, found->second.score, unknown_ == found->second.id);
      single = single || end == start + 1;
    }
    if (!single) offer(start, start + 1, unknown_score_, true);
  }
  return best;
}

// Unknown characters that follow each other are one piece.
std::vector<Span> Unigram::pieces_of(const std::u32string& word) const {
  const std::vector<Best> best = best_paths(word);
  std::vector<Span> pieces;  // from the end
  bool fusing = false;
  for (std::size_t end = word.size(); end > 0; end = best[end].start) {
    if (fusing && best[end].unknown) {
      pieces.back().start = best[end].start;
    } else {
      pieces.push_back({best[end].start, end});
    }
    fusing = best[end].unknown;
  }
  std::reverse(pieces.begin(), pieces.end());
  return pieces;
}

bool Unigram::add_bytes(const std::u32string& piece, Span at, std::vector<Token>& tokens) const {
  constexpr char32_t kDigits[] = U"0123456789ABCDEF";
  std::vector<Token> added;
  for (const char byte : unicode::encode(piece)) {
    const auto value = static_cast<unsigned char>(byte);
    const std::u32string name = {U'<', U'0', U'x', kDigits[value >> 4], kDigits[value & 15], U'>'};
    const auto id = id_of(name);
    if (!id) return false;
    added.push_back({*id, name, at});
  }
  tokens.insert(tokens.end(), added.begin(), added.end());
  return true;
}

void Unigram::tokenize(const std::u32string& word, std::vector<Token>& tokens) const {
  for (const Span& at : pieces_of(word)) {
    const std::u32string piece = word.substr(at.start, at.end - at.start);
    if (const auto id = id_of(piece)) {
      tokens.push_back({*id, piece, at});
    } else if (!byte_fallback_ || !add_bytes(piece, at, tokens)) {
      if (!unknown_) throw TokenizerError("the model has no token for: " + unicode::encode(piece));
      tokens.push_back({*unknown_, piece, at});
    }
  }
}

}  // namespace edgekd
