#include "words.hpp"

#include "bert.hpp"
#include "unicode.hpp"

namespace edgekd {

std::vector<Span> words_of(const std::u32string& text) {
  std::vector<AlignedText> parts;
  split_bert(AlignedText(text), parts);
  std::vector<Span> words;
  for (const AlignedText& part : parts) words.push_back(part.original({0, part.size()}));
  return words;
}

std::vector<std::optional<Tokens>> tokens_of(const Encoding& encoding, const std::vector<Span>& words, int text) {
  std::vector<std::size_t> own;
  for (std::size_t i = 0; i < encoding.ids.size(); ++i) {
    if (encoding.texts[i] == text && encoding.offsets[i].end > encoding.offsets[i].start) own.push_back(i);
  }
  std::vector<std::optional<Tokens>> found;
  std::size_t at = 0;
  for (const Span& word : words) {
    while (at < own.size() && encoding.offsets[own[at]].end <= word.start) ++at;
    std::size_t stop = at;
    while (stop < own.size() && encoding.offsets[own[stop]].start < word.end) ++stop;
    found.push_back(stop > at ? std::optional(Tokens{own[at], own[stop - 1]}) : std::nullopt);
  }
  return found;
}

std::vector<Group> groups_of(const std::vector<std::string>& tags) {
  std::vector<Group> found;
  std::optional<std::string> before;
  for (std::size_t word = 0; word < tags.size(); ++word) {
    const std::size_t dash = tags[word].find('-');
    const std::string kind = tags[word].substr(0, dash);
    const std::string label = dash == std::string::npos ? "" : tags[word].substr(dash + 1);
    if (kind == "I" && before == label) {
      found.back().last = word;
    } else if (kind != "O") {
      found.push_back({label, word, word});
    }
    before = kind == "O" ? std::nullopt : std::optional(label);
  }
  return found;
}

std::u32string single_spaced(const std::u32string& text) {
  std::u32string found;
  bool gap = false;
  for (const char32_t c : text) {
    // As Python's split(): the separators of files, groups, records and units too.
    const bool space = unicode::has(c, tables::kSpace) || (c >= 0x1C && c <= 0x1F);
    if (!space && gap && !found.empty()) found.push_back(U' ');
    if (!space) found.push_back(c);
    gap = space;
  }
  return found;
}

}  // namespace edgekd
