// A text under way from what was written to what the model reads, each character with its place in the original.
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace edgekd {

// Characters [start, end).
struct Span {
  std::size_t start = 0;
  std::size_t end = 0;
};

class AlignedText {
 public:
  AlignedText() = default;
  explicit AlignedText(std::u32string text);

  const std::u32string& text() const { return text_; }
  bool empty() const { return text_.empty(); }
  std::size_t size() const { return text_.size(); }

  AlignedText slice(Span part) const;
  // Where these characters (at least one) lie in the original.
  Span original(Span part) const { return {from_[part.start].start, from_[part.end - 1].end}; }

  // Replaces the text. A character takes the place of the next old one (more: 0), and of so many after it (more: -1 ..);
  // or it comes in addition (more: 1), and then shares the origin of the old character before: so the library counts, and
  // so offsets come out the same.
  struct Change {
    char32_t c;
    int more;
  };
  void replace(const std::vector<Change>& changes);

  void keep(const std::function<bool(char32_t)>& wanted);
  void map(const std::function<char32_t(char32_t)>& function);
  // Each character becomes several (none is dropped: at least one each).
  void expand(const std::function<void(char32_t, std::u32string&)>& function);
  // Before the first character, whose origin it takes; nothing where the text is empty.
  void prepend(std::u32string_view before);
  // Pieces that cover the text; each that is marked becomes `content`, which takes the origin of its last character.
  struct Piece {
    Span part;
    bool replaced;
  };
  void substitute(const std::vector<Piece>& pieces, std::u32string_view content);

 private:
  std::u32string text_;
  std::vector<Span> from_;
};

using Normalizer = std::function<void(AlignedText&)>;
// Appends the parts of a text; an empty one is dropped by the caller.
using PreTokenizer = std::function<void(AlignedText, std::vector<AlignedText>&)>;

}  // namespace edgekd
