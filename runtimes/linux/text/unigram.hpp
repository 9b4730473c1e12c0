// SentencePiece's Unigram model and the writing of blanks that it goes with.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "aligned.hpp"
#include "model.hpp"

namespace edgekd {

// Every match of the pattern becomes `content`. A pattern is a text, or at least `repeated` times its one character.
struct Replace {
  std::u32string pattern;
  std::size_t repeated = 0;  // 0: the pattern is a text
  std::u32string content;

  void operator()(AlignedText& text) const;

 private:
  // The length of the match at `place`; 0: none.
  std::size_t match(const std::u32string& text, std::size_t place) const;
};

// Takes blanks off the ends.
struct Strip {
  bool left = true;
  bool right = true;

  void operator()(AlignedText& text) const;
};

// Blanks become a visible character, at which words begin.
struct Metaspace {
  enum class Prepend { kAlways, kFirst, kNever };
  char32_t replacement = U'\u2581';
  Prepend prepend = Prepend::kAlways;
  bool split = true;

  void operator()(AlignedText text, std::vector<AlignedText>& parts) const;
};

class Unigram : public Model {
 public:
  struct Entry {
    std::u32string text;
    double score;
  };

  Unigram(const std::vector<Entry>& vocabulary, std::optional<int64_t> unknown, bool byte_fallback);
  void tokenize(const std::u32string& word, std::vector<Token>& tokens) const override;
  std::optional<int64_t> id_of(const std::u32string& token) const override;

 private:
  struct Scored {
    int64_t id;
    double score;
  };
  // The best way to a place of the word: the last token starts at `start`.
  struct Best {
    std::size_t start = 0;
    double score = 0;
    bool reached = false;
    bool unknown = false;
  };

  std::vector<Best> best_paths(const std::u32string& word) const;
  std::vector<Span> pieces_of(const std::u32string& word) const;
  bool add_bytes(const std::u32string& piece, Span at, std::vector<Token>& tokens) const;

  std::unordered_map<std::u32string, Scored> vocabulary_;
  std::optional<int64_t> unknown_;
  bool byte_fallback_;
  std::size_t longest_ = 0;
  double unknown_score_ = 0;
};

}  // namespace edgekd
