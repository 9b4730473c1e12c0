// Words of a text: where they are, which tokens they have, and what tags on them say.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "tokenizer.hpp"

namespace edgekd {

// Split at white space and at punctuation, each mark a word, as BERT does.
std::vector<Span> words_of(const std::u32string& text);

// The first and the last token that overlap a word; none where none does.
struct Tokens {
  std::size_t first, last;
};
// Of the tokens of a text of the encoding (0, 1 of a pair's second). Words and tokens are in the order of the text.
std::vector<std::optional<Tokens>> tokens_of(const Encoding& encoding, const std::vector<Span>& words, int text = 0);

// Words that are one thing.
struct Group {
  std::string label;
  std::size_t first, last;
};
// Of BIO tags: a group begins at B, and at an I that does not continue a group of its label.
std::vector<Group> groups_of(const std::vector<std::string>& tags);

// One space between the words that white space separates, none around them.
std::u32string single_spaced(const std::u32string& text);

}  // namespace edgekd
