// What a tokenizer's model is: words in, tokens out.
#pragma once

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

#include "aligned.hpp"

namespace edgekd {

// The file or the text cannot be used; the message says why.
class TokenizerError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

using Vocabulary = std::unordered_map<std::u32string, int64_t>;

inline std::optional<int64_t> find(const Vocabulary& vocabulary, const std::u32string& token) {
  auto found = vocabulary.find(token);
  return found == vocabulary.end() ? std::nullopt : std::optional<int64_t>(found->second);
}

struct Token {
  int64_t id = 0;
  std::u32string text;
  Span at;  // in the word; later in the original text
};

class Model {
 public:
  virtual ~Model() = default;
  // Appends the tokens of a word (not empty).
  virtual void tokenize(const std::u32string& word, std::vector<Token>& tokens) const = 0;
  virtual std::optional<int64_t> id_of(const std::u32string& token) const = 0;
};

}  // namespace edgekd
