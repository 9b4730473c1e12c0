#include "aligned.hpp"

#include <utility>

namespace edgekd {

AlignedText::AlignedText(std::u32string text) : text_(std::move(text)) {
  from_.reserve(text_.size());
  for (std::size_t i = 0; i < text_.size(); ++i) from_.push_back({i, i + 1});
}

AlignedText AlignedText::slice(Span part) const {
  AlignedText result;
  result.text_ = text_.substr(part.start, part.end - part.start);
  result.from_.assign(from_.begin() + part.start, from_.begin() + part.end);
  return result;
}

void AlignedText::replace(const std::vector<Change>& changes) {
  std::u32string text;
  std::vector<Span> from;
  text.reserve(changes.size());
  from.reserve(changes.size());
  std::size_t taken = 0;
  for (const Change& change : changes) {
    text.push_back(change.c);
    from.push_back(change.more > 0 ? (taken == 0 ? Span{} : from_[taken - 1]) : from_[taken]);
    if (change.more <= 0) taken += static_cast<std::size_t>(1 - change.more);
  }
  text_ = std::move(text);
  from_ = std::move(from);
}

void AlignedText::keep(const std::function<bool(char32_t)>& wanted) {
  std::size_t kept = 0;
  for (std::size_t i = 0; i < text_.size(); ++i) {
    if (!wanted(text_[i])) continue;
    text_[kept] = text_[i];
    from_[kept] = from_[i];
    ++kept;
  }
  text_.resize(kept);
  from_.resize(kept);
}

void AlignedText::map(const std::function<char32_t(char32_t)>& function) {
  for (char32_t& c : text_) c = function(c);
}

void AlignedText::expand(const std::function<void(char32_t, std::u32string&)>& function) {
  std::u32string text;
  std::vector<Span> from;
  text.reserve(text_.size());
  for (std::size_t i = 0; i < text_.size(); ++i) {
    function(text_[i], text);
    from.resize(text.size(), from_[i]);
  }
  text_ = std::move(text);
  from_ = std::move(from);
}

void AlignedText::substitute(const std::vector<Piece>& pieces, std::u32string_view content) {
  std::u32string text;
  std::vector<Span> from;
  for (const Piece& piece : pieces) {
    if (piece.replaced) {
      text += content;
      from.resize(text.size(), from_[piece.part.end - 1]);
    } else {
      text.append(text_, piece.part.start, piece.part.end - piece.part.start);
      from.insert(from.end(), from_.begin() + piece.part.start, from_.begin() + piece.part.end);
    }
  }
  text_ = std::move(text);
  from_ = std::move(from);
}

void AlignedText::prepend(std::u32string_view before) {
  if (text_.empty()) return;
  text_.insert(0, before);
  from_.insert(from_.begin(), before.size(), from_.front());
}

}  // namespace edgekd
