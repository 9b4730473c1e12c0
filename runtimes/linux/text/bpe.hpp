// Byte-level BPE, as GPT-2 and RoBERTa use it.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "aligned.hpp"
#include "model.hpp"

namespace edgekd {

// Splits as GPT-2's regular expression does, and writes each byte of UTF-8 as one visible character.
struct ByteLevel {
  bool add_prefix_space = true;
  bool use_regex = true;

  void operator()(AlignedText text, std::vector<AlignedText>& parts) const;
};

class Bpe : public Model {
 public:
  struct Options {
    std::u32string unknown;  // empty: none
    bool fuse_unknown = false;
    bool byte_fallback = false;  // an unknown character becomes tokens <0x..>
    bool ignore_merges = false;  // a word of the vocabulary is that token, whatever the merges say
  };
  using Merges = std::vector<std::pair<std::u32string, std::u32string>>;

  Bpe(Vocabulary vocabulary, const Merges& merges, Options options);
  void tokenize(const std::u32string& word, std::vector<Token>& tokens) const override;
  std::optional<int64_t> id_of(const std::u32string& token) const override { return find(vocabulary_, token); }

 private:
  struct Symbol {
    int64_t id;
    Span at;
    int before, after;  // neighbours; -1: none
    bool gone = false;
  };
  struct Merge {
    int rank;
    int64_t id;
  };

  std::vector<Symbol> symbols_of(const std::u32string& word) const;
  std::optional<std::vector<int64_t>> bytes_of(char32_t c) const;
  const Merge* merge_of(int64_t left, int64_t right) const;
  void merge(std::vector<Symbol>& symbols) const;

  Vocabulary vocabulary_;
  std::unordered_map<int64_t, std::u32string> text_of_;
  std::unordered_map<uint64_t, Merge> merges_;
  Options options_;
  std::optional<int64_t> unknown_;
};

}  // namespace edgekd
