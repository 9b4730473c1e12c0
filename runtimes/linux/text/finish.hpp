// After the model: cutting to a length, and the special tokens around a text or a pair.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "model.hpp"

namespace edgekd {

enum class Truncation { kLongestFirst, kOnlyFirst, kOnlySecond };

// Cuts ends off so that both together have at most `most` tokens; `second` may be null.
void truncate(std::vector<Token>& first, std::vector<Token>* second, std::size_t most, Truncation truncation);

// A place of a template: the tokens of a text (0 or 1), or special tokens.
struct Slot {
  std::optional<int> text;
  std::vector<int64_t> ids;
  int64_t type = 0;
};
using Template = std::vector<Slot>;

// Takes the blanks out of the offsets, as ByteLevel and RoBERTa do with `trim_offsets`.
struct Trimming {
  bool add_prefix_space = false;
};

struct PostProcessor {
  std::optional<Trimming> trimming;
  Template single = {{0, {}, 0}};
  Template pair = {{0, {}, 0}, {1, {}, 1}};
};

// How many special tokens a template adds.
std::size_t added_by(const Template& slots);

void trim(const Trimming& trimming, std::vector<Token>& tokens);

}  // namespace edgekd
