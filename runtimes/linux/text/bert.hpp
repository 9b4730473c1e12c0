// BERT's normalizer, pre-tokenizer and WordPiece model.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>

#include "aligned.hpp"
#include "model.hpp"

namespace edgekd {

struct BertNormalizer {
  bool clean_text = true;
  bool handle_chinese_chars = true;
  bool strip_accents = true;  // the file's null means: as lowercase
  bool lowercase = true;

  void operator()(AlignedText& text) const;
};

// Splits at blanks and around punctuation.
void split_bert(AlignedText text, std::vector<AlignedText>& parts);
// Splits at blanks.
void split_blanks(AlignedText text, std::vector<AlignedText>& parts);

class WordPiece : public Model {
 public:
  WordPiece(Vocabulary vocabulary, const std::u32string& unknown, std::u32string prefix, std::size_t longest_word);
  void tokenize(const std::u32string& word, std::vector<Token>& tokens) const override;
  std::optional<int64_t> id_of(const std::u32string& token) const override { return find(vocabulary_, token); }

 private:
  // The longest token of the vocabulary that the word goes on with at `start`.
  std::optional<Token> longest_at(const std::u32string& word, std::size_t start) const;

  Vocabulary vocabulary_;
  Token unknown_;
  std::u32string prefix_;
  std::size_t longest_word_;
  std::size_t longest_token_ = 0;  // longer pieces need no look-up
};

}  // namespace edgekd
