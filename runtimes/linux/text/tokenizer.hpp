// A tokenizer of the Hugging Face format tokenizer.json: the ids and offsets that the Python package gives.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "added.hpp"
#include "finish.hpp"
#include "model.hpp"

namespace edgekd {

struct Encoding {
  std::vector<int64_t> ids;
  std::vector<Span> offsets;          // in characters (code points) of the text, or of the pair's own text; specials: 0, 0
  std::vector<uint8_t> special_mask;  // 1: put there by the post-processor
  std::vector<int64_t> type_ids;
  std::vector<int> texts;  // which text a token is of: 0, 1 of a pair's second; -1: put there by the post-processor
};

inline constexpr std::size_t kUnlimited = std::numeric_limits<std::size_t>::max();

class Tokenizer {
 public:
  // Throws TokenizerError where the file cannot be read or asks for what is not written here. What the file says on
  // truncation and padding is left to the caller: it is how the file was last used, not what the tokenizer is.
  static Tokenizer load(const std::string& path);

  // The text is UTF-8. `max_length` counts the special tokens too.
  Encoding encode(std::string_view text, std::size_t max_length = kUnlimited) const;
  Encoding encode_pair(std::string_view first, std::string_view second, std::size_t max_length = kUnlimited,
                       Truncation truncation = Truncation::kLongestFirst) const;
  // The text's own tokens, all of them, without the special ones around it.
  Encoding encode_bare(std::string_view text) const;
  // How many special tokens stand around and between two texts.
  std::size_t special_tokens_of_pair() const { return added_by(post_processor_.pair); }

 private:
  friend class Loader;
  Tokenizer() = default;

  std::vector<Token> tokens_of(std::string_view text) const;
  // The pieces that are not added tokens are normalized.
  std::vector<Piece> pieces_of(std::string_view text) const;
  Encoding finished(const Template& slots, std::vector<Token> first, std::vector<Token>* second, std::size_t max_length,
                    Truncation truncation) const;

  AddedTokens added_raw_;         // found in the text as written
  AddedTokens added_normalized_;  // found after normalizing
  std::vector<Normalizer> normalizers_;
  std::vector<PreTokenizer> pre_tokenizers_;
  std::unique_ptr<Model> model_;
  PostProcessor post_processor_;
};

}  // namespace edgekd
