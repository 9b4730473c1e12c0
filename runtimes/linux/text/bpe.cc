#include "bpe.hpp"

#include <array>
#include <queue>
#include <string_view>
#include <tuple>

#include "unicode.hpp"

namespace edgekd {

namespace {

// GPT-2's alphabet: a printable byte stands for itself, the others for the characters from U+0100 on.
std::array<char32_t, 256> byte_alphabet() {
  std::array<char32_t, 256> alphabet{};
  char32_t next = 0x100;
  for (char32_t byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
    alphabet[byte] = printable ? byte : next++;
  }
  return alphabet;
}

bool is_letter(char32_t c) { return unicode::has(c, tables::kLetter); }
bool is_number(char32_t c) { return unicode::has(c, tables::kNumber); }
bool is_gap(char32_t c) { return unicode::has(c, tables::kGap); }
bool is_other(char32_t c) { return !unicode::has(c, tables::kLetter | tables::kNumber | tables::kGap); }

// The end of the characters of a kind from `start` on.
std::size_t run(const std::u32string& text, std::size_t start, bool (*kind)(char32_t)) {
  while (start < text.size() && kind(text[start])) ++start;
  return start;
}

// 's|'t|'re|'ve|'m|'ll|'d; the length, 0 where there is none.
std::size_t contraction(const std::u32string& text, std::size_t start) {
  if (text[start] != U'\'') return 0;
  for (std::u32string_view one : {U"'s", U"'t", U"'re", U"'ve", U"'m", U"'ll", U"'d"}) {
    if (text.compare(start, one.size(), one) == 0) return one.size();
  }
  return 0;
}

// The end of the match that starts at `start`, of the expression
// 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
std::size_t match(const std::u32string& text, std::size_t start) {
  if (const std::size_t length = contraction(text, start)) return start + length;
  const std::size_t word = start + (text[start] == U' ' ? 1 : 0);
  for (auto kind : {is_letter, is_number, is_other}) {
    const std::size_t end = run(text, word, kind);
    if (end > word) return end;
  }
  const std::size_t end = run(text, start, is_gap);
  const bool last_belongs_to_next = end < text.size() && end - start > 1;
  return last_belongs_to_next ? end - 1 : end;
}

uint64_t key_of(int64_t left, int64_t right) { return static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right); }

}  // namespace

void ByteLevel::operator()(AlignedText text, std::vector<AlignedText>& parts) const {
  static const std::array<char32_t, 256> alphabet = byte_alphabet();
  if (add_prefix_space && text.text().front() != U' ') text.prepend(U" ");
  for (std::size_t start = 0; start < text.size();) {
    const std::size_t end = use_regex ? match(text.text(), start) : text.size();
    AlignedText part = text.slice({start, end});
    part.expand([](char32_t c, std::u32string& into) {
      for (const char byte : unicode::encode({&c, 1})) into.push_back(alphabet[static_cast<unsigned char>(byte)]);
    });
    parts.push_back(std::move(part));
    start = end;
  }
}

Bpe::Bpe(Vocabulary vocabulary, const Merges& merges, Options options)
    : vocabulary_(std::move(vocabulary)), options_(std::move(options)) {
  for (const auto& [text, id] : vocabulary_) text_of_.emplace(id, text);
  int rank = 0;
  for (const auto& [left, right] : merges) {
    const auto one = find(vocabulary_, left), other = find(vocabulary_, right), both = find(vocabulary_, left + right);
    if (!one || !other || !both) {
      throw TokenizerError("a merge is not of the vocabulary: " + unicode::encode(left) + " " + unicode::encode(right));
    }
    merges_[key_of(*one, *other)] = {rank++, *both};
  }
  if (options_.unknown.empty()) return;
  unknown_ = find(vocabulary_, options_.unknown);
  if (!unknown_) throw TokenizerError("unk_token is not in the vocabulary: " + unicode::encode(options_.unknown));
}

std::optional<std::vector<int64_t>> Bpe::bytes_of(char32_t c) const {
  constexpr char32_t kDigits[] = U"0123456789ABCDEF";
  std::vector<int64_t> ids;
  for (const char byte : unicode::encode({&c, 1})) {
    const auto value = static_cast<unsigned char>(byte);
    const auto id = find(vocabulary_, {U'<', U'0', U'x', kDigits[value >> 4], kDigits[value & 15], U'>'});
    if (!id) return std::nullopt;
    ids.push_back(*id);
  }
  return ids;
}

std::vector<Bpe::Symbol> Bpe::symbols_of(const std::u32string& word) const {
  std::vector<Symbol> symbols;
  bool after_unknown = false;
  auto add = [&](int64_t id, std::size_t at) {
    symbols.push_back({id, {at, at + 1}, static_cast<int>(symbols.size()) - 1, static_cast<int>(symbols.size()) + 1});
  };
  for (std::size_t i = 0; i < word.size(); ++i) {
    const auto id = find(vocabulary_, std::u32string(1, word[i]));
    std::optional<std::vector<int64_t>> bytes;
    if (!id && options_.byte_fallback) bytes = bytes_of(word[i]);
    const bool unknown = !id && !bytes && unknown_;
    if (id) add(*id, i);
    if (bytes) {
      for (const int64_t byte : *bytes) add(byte, i);
    }
    if (unknown && after_unknown && options_.fuse_unknown) {
      symbols.back().at.end = i + 1;
    } else if (unknown) {
      add(*unknown_, i);
    }
    after_unknown = unknown;
  }
  if (!symbols.empty()) symbols.back().after = -1;
  return symbols;
}

const Bpe::Merge* Bpe::merge_of(int64_t left, int64_t right) const {
  auto found = merges_.find(key_of(left, right));
  return found == merges_.end() ? nullptr : &found->second;
}

// The merge of the lowest rank first, of one rank the leftmost.
void Bpe::merge(std::vector<Symbol>& symbols) const {
  using Candidate = std::tuple<int, int, int64_t>;  // rank, place, id of the result
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> candidates;
  auto propose = [&](int left) {
    if (left < 0 || symbols[left].after < 0) return;
    const Merge* merge = merge_of(symbols[left].id, symbols[symbols[left].after].id);
    if (merge != nullptr) candidates.emplace(merge->rank, left, merge->id);
  };
  for (int i = 0; i < static_cast<int>(symbols.size()); ++i) propose(i);
  while (!candidates.empty()) {
    const auto [rank, place, id] = candidates.top();
    candidates.pop();
    Symbol& left = symbols[place];
    if (left.gone || left.after < 0) continue;
    Symbol& right = symbols[left.after];
    const Merge* merge = merge_of(left.id, right.id);
    if (merge == nullptr || merge->id != id) continue;  // one of the two was merged meanwhile
    left.id = id;
    left.at.end = right.at.end;
    left.after = right.after;
    right.gone = true;
    if (left.after >= 0) symbols[left.after].before = place;
    propose(left.before);
    propose(place);
  }
}

void Bpe::tokenize(const std::u32string& word, std::vector<Token>& tokens) const {
  if (options_.ignore_merges) {
    if (auto id = find(vocabulary_, word)) {
      tokens.push_back({*id, word, {0, word.size()}});
      return;
    }
  }
  std::vector<Symbol> symbols = symbols_of(word);
  merge(symbols);
  for (const Symbol& symbol : symbols) {
    if (!symbol.gone) tokens.push_back({symbol.id, text_of_.at(symbol.id), symbol.at});
  }
}

}  // namespace edgekd
