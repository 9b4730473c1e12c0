#include "added.hpp"

#include <algorithm>
#include <utility>

#include "unicode.hpp"

namespace edgekd {

namespace {

bool inside_word(const std::u32string& text, Span match) {
  const bool before = match.start > 0 && unicode::has(text[match.start - 1], tables::kWord);
  const bool after = match.end < text.size() && unicode::has(text[match.end], tables::kWord);
  return before || after;
}

bool is_blank(char32_t c) { return unicode::has(c, tables::kSpace); }

}  // namespace

AddedTokens::AddedTokens(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
  auto empty = [](const AddedToken& token) { return token.content.empty(); };
  tokens_.erase(std::remove_if(tokens_.begin(), tokens_.end(), empty), tokens_.end());
  std::stable_sort(tokens_.begin(), tokens_.end(), [](const AddedToken& one, const AddedToken& other) {
    return one.content.size() > other.content.size();
  });
}

const AddedToken* AddedTokens::at(const std::u32string& text, std::size_t place) const {
  for (const AddedToken& token : tokens_) {
    if (text.compare(place, token.content.size(), token.content) == 0) return &token;
  }
  return nullptr;
}

std::vector<Piece> AddedTokens::split(const AlignedText& aligned) const {
  const std::u32string& text = aligned.text();
  std::vector<Piece> pieces;
  std::size_t done = 0;  // up to here the text is in pieces
  for (std::size_t place = 0; place < text.size();) {
    const AddedToken* token = at(text, place);
    if (token == nullptr) {
      ++place;
      continue;
    }
    Span match{place, place + token->content.size()};
    place = match.end;
    if (token->single_word && inside_word(text, match)) continue;
    while (token->lstrip && match.start > done && is_blank(text[match.start - 1])) --match.start;
    while (token->rstrip && match.end < text.size() && is_blank(text[match.end])) ++match.end;
    if (done < match.start) pieces.push_back({aligned.slice({done, match.start}), std::nullopt});
    pieces.push_back({aligned.slice(match), token->id});
    done = match.end;
  }
  if (done < text.size()) pieces.push_back({aligned.slice({done, text.size()}), std::nullopt});
  return pieces;
}

}  // namespace edgekd
