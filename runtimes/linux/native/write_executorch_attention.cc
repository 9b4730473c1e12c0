// Attention over a cache of keys and values for ExecuTorch: `llama::update_cache` and `llama::custom_sdpa`, operators of its
// own that its package has for Python alone (in a library that needs torch). Here they are written anew, for what the
// students are: float32, one text, causal. A file that asks for more of them is refused when it runs.

#include <executorch/extension/kernel_util/make_boxed_from_unboxed_functor.h>
#include <executorch/runtime/core/exec_aten/exec_aten.h>
#include <executorch/runtime/kernel/kernel_includes.h>
#include <executorch/runtime/kernel/thread_parallel_interface.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

namespace edgekd::engine {
namespace {

using executorch::aten::ScalarType;
using executorch::aten::Tensor;
using executorch::runtime::Error;
using executorch::runtime::KernelRuntimeContext;

#define EDGEKD_INLINE inline __attribute__((always_inline))
#if defined(__x86_64__) && !defined(__clang__)  // one body for every kind of processor
#define EDGEKD_EVERY_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define EDGEKD_EVERY_PROCESSOR
#endif

constexpr int64_t kLanes = 8;
constexpr int64_t kRows = 4;  // queries that read a key together
typedef float Lanes __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef int32_t Whole __attribute__((vector_size(4 * kLanes)));

struct Query {
  const float* values;
  float* found;
  int64_t seen;  // keys that it sees
};

// e to the power of each, within two units in the last place; of what is below -87, nearly 0.
EDGEKD_INLINE void exponentials(Lanes& x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: numbers near it are whole
  x = x > -87.0f ? x : Lanes{} - 87.0f;
  const Lanes shifted = x * 1.44269504f + kRound, whole = shifted - kRound;
  const Lanes rest = x - whole * 0.693359375f + whole * 2.12194440e-4f;
  const Lanes series =
      ((((rest * 1.9875691500e-4f + 1.3981999507e-3f) * rest + 8.3334519073e-3f) * rest + 4.1665795894e-2f) * rest +
       1.6666665459e-1f) * rest + 5.0000001201e-1f;
  Whole bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << 23) + (127 << 23);
  Lanes power;
  std::memcpy(&power, &bits, sizeof power);
  x = (series * rest * rest + rest + 1.0f) * power;
}

// The found values of kRows queries over the keys and values of one head, which lie `stride` numbers apart.
EDGEKD_EVERY_PROCESSOR
void attend(const Query* queries, const float* keys, const float* values, int64_t stride, int64_t width, float scale,
            std::vector<float>& memory) {
  int64_t most = 0;
  for (int64_t row = 0; row < kRows; ++row) most = std::max(most, queries[row].seen);
  const int64_t padded = (most + kLanes - 1) / kLanes * kLanes;
  if (memory.size() < static_cast<std::size_t>(kRows * padded)) memory.resize(kRows * padded);
  float* shares = memory.data();
  for (int64_t place = 0; place < most; ++place) {
    Lanes sums[kRows] = {};
    for (int64_t at = 0; at < width; at += kLanes) {
      const Lanes key = *reinterpret_cast<const Lanes*>(keys + place * stride + at);
      for (int64_t row = 0; row < kRows; ++row) {
        sums[row] += *reinterpret_cast<const Lanes*>(queries[row].values + at) * key;
      }
    }
    for (int64_t row = 0; row < kRows; ++row) {
      const Lanes& sum = sums[row];
      shares[row * padded + place] =
          scale * (((sum[0] + sum[4]) + (sum[1] + sum[5])) + ((sum[2] + sum[6]) + (sum[3] + sum[7])));
    }
  }
  float totals[kRows];
  for (int64_t row = 0; row < kRows; ++row) {
    float* own = shares + row * padded;
    std::fill(own + queries[row].seen, own + padded, -INFINITY);
    Lanes top = Lanes{} - INFINITY, total = {};
    for (int64_t place = 0; place < padded; place += kLanes) {
      const Lanes some = *reinterpret_cast<const Lanes*>(own + place);
      top = some > top ? some : top;
    }
    float largest = top[0];
    for (int64_t lane = 1; lane < kLanes; ++lane) largest = std::max(largest, top[lane]);
    for (int64_t place = 0; place < padded; place += kLanes) {
      Lanes some = *reinterpret_cast<const Lanes*>(own + place) - largest;
      exponentials(some);
      *reinterpret_cast<Lanes*>(own + place) = some;
      total += some;
    }
    totals[row] = 0;
    for (int64_t lane = 0; lane < kLanes; ++lane) totals[row] += total[lane];
  }
  for (int64_t at = 0; at < width; at += kLanes) {
    Lanes sums[kRows] = {};
    for (int64_t place = 0; place < most; ++place) {
      const Lanes value = *reinterpret_cast<const Lanes*>(values + place * stride + at);
      for (int64_t row = 0; row < kRows; ++row) sums[row] += value * shares[row * padded + place];
    }
    for (int64_t row = 0; row < kRows; ++row) {
      *reinterpret_cast<Lanes*>(queries[row].found + at) = sums[row] / totals[row];
    }
  }
}

bool is_text(const Tensor& one) { return one.scalar_type() == ScalarType::Float && one.dim() == 4 && one.size(0) == 1; }

Tensor& update_cache(KernelRuntimeContext& context, const Tensor& value, Tensor& cache, int64_t start, Tensor& out) {
  const bool good = is_text(value) && is_text(cache) && value.size(2) == cache.size(2) && value.size(3) == cache.size(3) &&
                    start >= 0 && start + value.size(1) <= cache.size(1);
  if (!good) {
    context.fail(Error::InvalidArgument);
    return out;
  }
  std::memcpy(cache.mutable_data_ptr<float>() + start * cache.size(2) * cache.size(3), value.const_data_ptr<float>(),
              value.nbytes());
  return out;  // nobody reads it
}

Tensor& custom_sdpa(KernelRuntimeContext& context, const Tensor& query, const Tensor& key, const Tensor& value, int64_t start,
                    const std::optional<Tensor>& mask, double dropout, bool causal, std::optional<double> scale, Tensor& out) {
  const bool good = is_text(query) && is_text(key) && is_text(value) && key.size(1) == value.size(1) &&
                    key.size(2) == value.size(2) && key.size(3) == query.size(3) && value.size(3) == query.size(3) &&
                    query.size(3) % kLanes == 0 && query.size(2) % key.size(2) == 0 && start >= 0 &&
                    start + query.size(1) <= key.size(1) && !mask && dropout == 0 && causal;
  if (!good || executorch::runtime::resize_tensor(out, query.sizes()) != Error::Ok) {
    context.fail(Error::InvalidArgument);
    return out;
  }
  const int64_t tokens = query.size(1), heads = query.size(2), width = query.size(3), groups = key.size(2);
  const int64_t shared = heads / groups, pieces = (tokens * shared + kRows - 1) / kRows;  // heads that read one head's keys
  const auto factor = static_cast<float>(scale ? *scale : 1 / std::sqrt(static_cast<double>(width)));
  const float *queries = query.const_data_ptr<float>(), *keys = key.const_data_ptr<float>();
  const float* values = value.const_data_ptr<float>();
  float* found = out.mutable_data_ptr<float>();
  executorch::extension::parallel_for(0, groups * pieces, 1, [&](int64_t begin, int64_t end) {
    static thread_local std::vector<float> memory;
    for (int64_t piece = begin; piece < end; ++piece) {
      const int64_t group = piece / pieces;
      Query some[kRows];
      for (int64_t row = 0; row < kRows; ++row) {  // the last piece repeats its last query
        const int64_t at = std::min(piece % pieces * kRows + row, tokens * shared - 1);
        const int64_t place = (at / shared * heads + group * shared + at % shared) * width;
        some[row] = {queries + place, found + place, start + at / shared + 1};
      }
      attend(some, keys + group * width, values + group * width, groups * width, width, factor, memory);
    }
  });
  return out;
}

}  // namespace
}  // namespace edgekd::engine

EXECUTORCH_LIBRARY(llama, "update_cache.out", edgekd::engine::update_cache);
EXECUTORCH_LIBRARY(llama, "custom_sdpa.out", edgekd::engine::custom_sdpa);
