#include "finish.hpp"

#include <algorithm>

#include "unicode.hpp"

namespace edgekd {

namespace {

void cut(std::vector<Token>& tokens, std::size_t length) {
  if (tokens.size() > length) tokens.resize(length);
}

// The lengths that longest-first leaves: the shorter text is cut only where half of the room is too little for it.
void cut_longest(std::vector<Token>& first, std::vector<Token>& second, std::size_t most) {
  const bool swapped = first.size() > second.size();
  std::size_t shorter = std::min(first.size(), second.size());
  std::size_t longer = shorter > most ? shorter : std::max(shorter, most - shorter);
  if (shorter + longer > most) {
    shorter = most / 2;
    longer = shorter + most % 2;
  }
  cut(first, swapped ? longer : shorter);
  cut(second, swapped ? shorter : longer);
}

void cut_one(std::vector<Token>& tokens, std::size_t surplus) {
  if (tokens.size() <= surplus) throw TokenizerError("the text to be truncated is too short to make the pair fit");
  cut(tokens, tokens.size() - surplus);
}

bool is_gap(char32_t c) { return c == U'\u0120' || unicode::has(c, tables::kSpace); }  // a space as ByteLevel writes it

}  // namespace

void truncate(std::vector<Token>& first, std::vector<Token>* second, std::size_t most, Truncation truncation) {
  const std::size_t total = first.size() + (second == nullptr ? 0 : second->size());
  if (total <= most) return;
  if (most == 0) {
    first.clear();
    if (second != nullptr) second->clear();
  } else if (truncation == Truncation::kOnlySecond) {
    if (second == nullptr) throw TokenizerError("there is no second text to be truncated");
    cut_one(*second, total - most);
  } else if (truncation == Truncation::kOnlyFirst) {
    cut_one(first, total - most);
  } else if (second == nullptr) {
    cut(first, most);
  } else {
    cut_longest(first, *second, most);
  }
}

std::size_t added_by(const Template& slots) {
  std::size_t count = 0;
  for (const Slot& slot : slots) count += slot.ids.size();
  return count;
}

void trim(const Trimming& trimming, std::vector<Token>& tokens) {
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    const std::u32string& text = tokens[i].text;
    Span& at = tokens[i].at;
    std::size_t before = std::find_if_not(text.begin(), text.end(), is_gap) - text.begin();
    const std::size_t after = std::find_if_not(text.rbegin(), text.rend(), is_gap) - text.rbegin();
    if (before > 0) {
      // A single space that starts a text is the one that was put before it: it has no place in the original.
      if (trimming.add_prefix_space && before == 1 && (i == 0 || at.start == 0)) before = 0;
      at.start = std::min(at.start + before, at.end);
    }
    if (after > 0 && at.end >= after) at.end = std::max(at.end - after, at.start);
  }
}

}  // namespace edgekd
