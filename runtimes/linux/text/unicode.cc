#include "unicode.hpp"

#include <algorithm>
#include <iterator>
#include <stdexcept>

#include "grapheme_tables.hpp"

namespace edgekd::unicode {

namespace {

using tables::Mapping;
using tables::Run;

template <std::size_t Count>
uint16_t value_at(const Run (&runs)[Count], char32_t c) {
  auto after = std::upper_bound(std::begin(runs), std::end(runs), c, [](char32_t one, const Run& run) { return one < run.from; });
  return std::prev(after)->value;
}

template <std::size_t Count>
std::u32string mapped(const Mapping (&mappings)[Count], char32_t c) {
  auto found = std::lower_bound(std::begin(mappings), std::end(mappings), c,
                                [](const Mapping& mapping, char32_t one) { return mapping.from < one; });
  if (found == std::end(mappings) || found->from != c) return std::u32string(1, c);
  return std::u32string(tables::kPool + found->start, found->count);
}

// The length of a sequence by its first byte; 0: no first byte.
int length_of(unsigned char first) {
  if (first < 0x80) return 1;
  if (first >= 0xC2 && first < 0xE0) return 2;
  if (first >= 0xE0 && first < 0xF0) return 3;
  if (first >= 0xF0 && first < 0xF5) return 4;
  return 0;
}

[[noreturn]] void refuse(std::size_t place) {
  throw std::invalid_argument("the text is not UTF-8 at byte " + std::to_string(place));
}

char32_t decode_one(std::string_view utf8, std::size_t place, int length) {
  if (length == 0 || place + length > utf8.size()) refuse(place);
  const auto first = static_cast<unsigned char>(utf8[place]);
  if (length == 1) return first;
  char32_t c = first & (0xFF >> (length + 1));
  for (int i = 1; i < length; ++i) {
    const auto next = static_cast<unsigned char>(utf8[place + i]);
    if ((next & 0xC0) != 0x80) refuse(place);
    c = c << 6 | (next & 0x3F);
  }
  const bool overlong = (length == 3 && c < 0x800) || (length == 4 && c < 0x10000);
  const bool surrogate = c >= 0xD800 && c < 0xE000;
  if (overlong || surrogate || c > 0x10FFFF) refuse(place);
  return c;
}

constexpr char32_t kZeroWidthJoiner = 0x200D;

bool within(char32_t c, char32_t first, char32_t last) { return c >= first && c <= last; }
bool is(char32_t c, uint16_t flags) { return (value_at(tables::kGraphemeFlags, c) & flags) != 0; }
bool is_regional(char32_t c) { return within(c, 0x1F1E6, 0x1F1FF); }

// Whether two parts of a Hangul syllable are of one: leads, vowels and tails follow each other.
bool is_one_syllable(char32_t one, char32_t next) {
  const auto lead = [](char32_t c) { return within(c, 0x1100, 0x115F) || within(c, 0xA960, 0xA97C); };
  const auto vowel = [](char32_t c) { return within(c, 0x1160, 0x11A7) || within(c, 0xD7B0, 0xD7C6); };
  const auto tail = [](char32_t c) { return within(c, 0x11A8, 0x11FF) || within(c, 0xD7CB, 0xD7FB); };
  const auto whole = [](char32_t c) { return within(c, 0xAC00, 0xD7A3); };
  const bool open = vowel(one) || (whole(one) && (one - 0xAC00) % 28 == 0);
  if (lead(one)) return lead(next) || vowel(next) || whole(next);
  return (open && (vowel(next) || tail(next))) || ((tail(one) || whole(one)) && tail(next));
}

// What has been taken for one so far, as far as what follows depends on it.
struct Grapheme {
  int regional = 0;         // letters of flags at its end
  bool pictograph = false;  // one, and marks
  bool consonant = false;   // an Indic one, and marks
  bool linked = false;      // and a linker among these

  bool goes_on(char32_t before, char32_t c) const {
    if (before == U'\r' && c == U'\n') return true;
    if (is(before, tables::kStands) || is(c, tables::kStands)) return false;
    return is(c, tables::kJoins) || is(before, tables::kLeads) || is_one_syllable(before, c) ||
           (regional % 2 == 1 && is_regional(c)) || (linked && is(c, tables::kConsonant)) ||
           (pictograph && before == kZeroWidthJoiner && is(c, tables::kPictograph));
  }

  void take(char32_t c) {
    const bool joins = is(c, tables::kJoins);
    regional = is_regional(c) ? regional + 1 : 0;
    pictograph = is(c, tables::kPictograph) || (pictograph && joins);
    linked = consonant && (is(c, tables::kLinker) || (linked && joins));
    consonant = is(c, tables::kConsonant) || (consonant && joins);
  }
};

}  // namespace

std::u32string decode(std::string_view utf8) {
  std::u32string text;
  text.reserve(utf8.size());
  for (std::size_t place = 0; place < utf8.size();) {
    const int length = length_of(static_cast<unsigned char>(utf8[place]));
    text.push_back(decode_one(utf8, place, length));
    place += length;
  }
  return text;
}

std::string encode(std::u32string_view text) {
  std::string utf8;
  for (char32_t c : text) {
    if (c < 0x80) {
      utf8.push_back(static_cast<char>(c));
      continue;
    }
    const int more = c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
    utf8.push_back(static_cast<char>((0xFF80 >> more) | (c >> (6 * more))));
    for (int i = more - 1; i >= 0; --i) utf8.push_back(static_cast<char>(0x80 | ((c >> (6 * i)) & 0x3F)));
  }
  return utf8;
}

bool has(char32_t c, uint16_t flags) { return (value_at(tables::kFlags, c) & flags) != 0; }

int combining_class(char32_t c) { return c < 0x300 ? 0 : value_at(tables::kCombiningClass, c); }

std::u32string decomposed(char32_t c) {
  constexpr char32_t kFirst = 0xAC00, kCount = 11172, kLead = 0x1100, kVowel = 0x1161, kTail = 0x11A7;
  constexpr char32_t kVowels = 21, kTails = 28;
  if (c < 0x80) return std::u32string(1, c);
  if (c < kFirst || c >= kFirst + kCount) return mapped(tables::kDecomposition, c);
  const char32_t syllable = c - kFirst;
  std::u32string parts = {kLead + syllable / (kVowels * kTails), kVowel + syllable / kTails % kVowels};
  if (syllable % kTails != 0) parts.push_back(kTail + syllable % kTails);
  return parts;
}

std::u32string lowercase(char32_t c) { return mapped(tables::kLowercase, c); }

// The rules of Unicode's annex 29, as far as they are told apart by what becomes of a text.
std::size_t grapheme_end(const std::u32string& text, std::size_t start) {
  Grapheme grapheme;
  std::size_t end = start;
  while (end < text.size() && (end == start || grapheme.goes_on(text[end - 1], text[end]))) grapheme.take(text[end++]);
  return end;
}

}  // namespace edgekd::unicode
