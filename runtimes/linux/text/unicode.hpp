// UTF-8, and what the tokenizer must know of characters (unicode_tables.hpp).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "unicode_tables.hpp"

namespace edgekd::unicode {

// Throws std::invalid_argument with the place of the first byte that is not UTF-8 (surrogates are not).
std::u32string decode(std::string_view utf8);
std::string encode(std::u32string_view text);

// Whether the character has any of these bits (tables::kSpace ..).
bool has(char32_t c, uint16_t flags);

// The class that orders marks after a letter; 0: not moved.
int combining_class(char32_t c);

// Canonical decomposition, in full; c itself where it has none.
std::u32string decomposed(char32_t c);
std::u32string lowercase(char32_t c);

// The end of the grapheme (what a reader takes for one character) that starts at `start`.
std::size_t grapheme_end(const std::u32string& text, std::size_t start);

}  // namespace edgekd::unicode
