// What writes text: a student with a cache of keys and values, opened by write_onnx.cc, write_litert.cc or
// write_executorch.cc.

#pragma once

#include <algorithm>
#include <cmath>

#include "engine.hpp"

namespace edgekd::engine {

class Writer {
 public:
  virtual ~Writer() = default;

  int64_t context = 0;     // tokens that the cache holds
  int64_t vocabulary = 0;  // tokens that there are

  // Forgets all tokens.
  void reset() { fed_ = 0; }

  // The likeliest token after these, which follow those fed before and fit in the cache; of equal ones the lowest.
  int64_t feed(const int64_t* ids, int64_t count) {
    const int64_t found = likeliest(logits(ids, count, fed_), vocabulary);
    fed_ += count;
    return found;
  }

  virtual json observed() = 0;  // backend, threads, and what else the runtime tells

  static int64_t likeliest(const float* logits, int64_t count) {
    constexpr int64_t kLanes = 16;  // a processor compares several at once
    float most[kLanes];
    std::fill(most, most + kLanes, -INFINITY);
    const int64_t whole = count - count % kLanes;
    for (int64_t i = 0; i < whole; i += kLanes) {
      for (int64_t lane = 0; lane < kLanes; ++lane) most[lane] = std::max(most[lane], logits[i + lane]);
    }
    for (int64_t i = whole; i < count; ++i) most[0] = std::max(most[0], logits[i]);
    const float best = *std::max_element(most, most + kLanes);
    if (!std::isfinite(best)) throw RunnerError("failed", "the model's output has a number that is not finite");
    return std::find(logits, logits + count, best) - logits;
  }

 protected:
  // The `vocabulary` logits after the last of these tokens, the first of which is at the place `start`.
  virtual const float* logits(const int64_t* ids, int64_t count, int64_t start) = 0;

 private:
  int64_t fed_ = 0;
};

}  // namespace edgekd::engine

// Every runtime that writes has this entry. The cache is to hold `context` tokens, or what the file can if that is less.
extern "C" edgekd::engine::Writer* edgekd_open_writer(const edgekd::engine::Job& job, int64_t context);
