// SentencePiece's own normalization: a table from short texts to what they become.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "aligned.hpp"

namespace edgekd {

class Precompiled {
 public:
  // The table as SentencePiece writes it: a trie's size, the trie (darts-clone's double array), and texts, each with a
  // zero byte at its end. Throws TokenizerError for what is none.
  explicit Precompiled(std::string_view charsmap);

  // What is looked up is a grapheme, and its characters where it is long or not in the table.
  void operator()(AlignedText& text) const;

 private:
  // What the shortest beginning of a part in the table becomes; none where none is in it.
  std::optional<std::u32string> become(std::u32string_view part) const;

  std::vector<uint32_t> trie_;
  std::string texts_;
};

}  // namespace edgekd
