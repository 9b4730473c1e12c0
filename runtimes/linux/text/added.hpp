// Tokens that are found in the text itself, before the model sees it: [MASK] in a sentence is one token.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "aligned.hpp"

namespace edgekd {

struct AddedToken {
  int64_t id = 0;
  std::u32string content;
  bool single_word = false;  // not inside a word
  bool lstrip = false;       // takes the blanks before it along
  bool rstrip = false;
  bool normalized = false;  // is looked for in the normalized text
};

// A part of a text, and the token that it is where it is one.
struct Piece {
  AlignedText text;
  std::optional<int64_t> token;
};

class AddedTokens {
 public:
  AddedTokens() = default;
  // Of two with one content the first is found.
  explicit AddedTokens(std::vector<AddedToken> tokens);

  // The text in parts that are not empty, in order.
  std::vector<Piece> split(const AlignedText& text) const;

 private:
  // The longest token at `place`.
  const AddedToken* at(const std::u32string& text, std::size_t place) const;

  std::vector<AddedToken> tokens_;  // the longest first
};

}  // namespace edgekd
