#include "precompiled.hpp"

#include <algorithm>
#include <stdexcept>

#include "model.hpp"
#include "unicode.hpp"

namespace edgekd {

namespace {

uint32_t number_at(std::string_view bytes, std::size_t place) {
  uint32_t number = 0;
  for (int i = 0; i < 4; ++i) number |= static_cast<uint32_t>(static_cast<unsigned char>(bytes[place + i])) << (8 * i);
  return number;
}

// A unit of the double array: what it says of its node.
bool has_value(uint32_t unit) { return (unit >> 8 & 1) != 0; }
uint32_t value(uint32_t unit) { return unit & 0x7FFFFFFF; }
uint32_t label(uint32_t unit) { return unit & 0x800000FF; }
uint32_t offset(uint32_t unit) { return unit >> 10 << ((unit & 1u << 9) >> 6); }

// Appends the changes that make `to` of the next `from` characters, counted as the library counts: the last of the new
// ones are additions, and what is lost goes with the character before. (So what is lost at the start is not counted.)
void append(std::vector<AlignedText::Change>& changes, std::size_t from, const std::u32string& to) {
  for (const char32_t c : to) changes.push_back({c, 0});
  if (to.size() > from) {
    std::for_each(changes.end() - static_cast<std::ptrdiff_t>(to.size() - from), changes.end(),
                  [](AlignedText::Change& change) { change.more = 1; });
  } else if (to.size() < from && !changes.empty()) {
    changes.back().more -= static_cast<int>(from - to.size());
  }
}

}  // namespace

Precompiled::Precompiled(std::string_view charsmap) {
  const std::size_t size = charsmap.size() < 4 ? 0 : number_at(charsmap, 0);
  if (size < 4 || size % 4 != 0 || size > charsmap.size() - 4) throw TokenizerError("precompiled_charsmap is no table");
  for (std::size_t place = 4; place < 4 + size; place += 4) trie_.push_back(number_at(charsmap, place));
  texts_ = charsmap.substr(4 + size);
  try {
    unicode::decode(texts_);
  } catch (const std::invalid_argument& error) {
    throw TokenizerError(std::string("precompiled_charsmap: ") + error.what());
  }
}

std::optional<std::u32string> Precompiled::become(std::u32string_view part) const {
  uint32_t at = offset(trie_[0]);
  for (const char one : unicode::encode(part)) {
    const auto byte = static_cast<unsigned char>(one);
    at ^= byte;
    if (byte == 0 || at >= trie_.size() || label(trie_[at]) != byte) return std::nullopt;
    const bool found = has_value(trie_[at]);
    at ^= offset(trie_[at]);
    if (!found) continue;
    if (at >= trie_.size() || value(trie_[at]) > texts_.size()) throw TokenizerError("precompiled_charsmap is broken");
    return unicode::decode(texts_.c_str() + value(trie_[at]));
  }
  return std::nullopt;
}

void Precompiled::operator()(AlignedText& aligned) const {
  constexpr std::size_t kLong = 6;  // bytes
  const std::u32string& text = aligned.text();
  std::vector<AlignedText::Change> changes;
  bool any = false;
  const auto replaced = [&](std::u32string_view part) {
    const auto found = become(part);
    if (found) append(changes, part.size(), *found);
    any = any || found;
    return found.has_value();
  };
  for (std::size_t start = 0; start < text.size();) {
    const std::size_t end = unicode::grapheme_end(text, start);
    const std::u32string_view grapheme = std::u32string_view(text).substr(start, end - start);
    if (unicode::encode(grapheme).size() >= kLong || !replaced(grapheme)) {
      for (std::size_t i = 0; i < grapheme.size(); ++i) {
        if (!replaced(grapheme.substr(i, 1))) changes.push_back({grapheme[i], 0});
      }
    }
    start = end;
  }
  if (any) aligned.replace(changes);
}

}  // namespace edgekd
