// Writes text with LiteRT: the model inside a LiteRT-LM file, whose graph `decode` takes one token and gives logits, and
// whose graphs `prefill_<n>` take n and fill the cache only. The cache that a graph reads is the one that it writes, as
// LiteRT-LM has it: LiteRT then copies nothing but the new keys and values.

#include <map>

#include "litert_session.hpp"
#include "writer.hpp"

namespace edgekd::engine {
namespace {

const std::string kDecode = "decode", kPrefill = "prefill_", kCache = "kv_cache_";
const float kMasked = static_cast<float>(-0.7 * 3.4028235e38);  // two of them are still a number

class LiteRtWriter : public Writer {
 public:
  LiteRtWriter(const Job& job, int64_t wanted) : threads_(job.threads) {
    LITERT(LiteRtCreateEnvironment(0, nullptr, &environment_));
    LITERT(LiteRtCreateModelFromFile(environment_, job.model.c_str(), &model_));
    compiled_ = compiled(environment_, model_, job.threads, false);
    LiteRtParamIndex count = 0;
    LITERT(LiteRtGetNumModelSignatures(model_, &count));
    for (LiteRtParamIndex at = 0; at < count; ++at) {
      LiteRtSignature signature = nullptr;
      const char* name = nullptr;
      LITERT(LiteRtGetModelSignature(model_, at, &signature));
      LITERT(LiteRtGetSignatureKey(signature, &name));
      if (name == kDecode) {
        decode_ = graph(signature, at);
      } else if (std::string(name).rfind(kPrefill, 0) == 0) {
        Graph made = graph(signature, at);
        prefills_.emplace(made.size, made);
      }
    }
    if (decode_.size != 1 || vocabulary < 1) refuse("no graph 'decode' that takes one token and gives logits");
    context = std::min(wanted, places_);
  }

  ~LiteRtWriter() override {
    for (auto* one : buffers_) LiteRtDestroyTensorBuffer(one);
    LiteRtDestroyCompiledModel(compiled_);
    LiteRtDestroyModel(model_);
  }

  json observed() override {
    bool all = false;
    LITERT(LiteRtCompiledModelIsFullyAccelerated(compiled_, &all));
    json sizes = json::array();
    for (const auto& [size, graph] : prefills_) sizes.push_back(size);
    return {{"backend", "XNNPACK"}, {"fully_delegated", all}, {"threads", threads_}, {"prefill", sizes}};
  }

 protected:
  const float* logits(const int64_t* ids, int64_t count, int64_t start) override {
    while (count > 1) {
      Graph& graph = fitting(count - 1, start);
      const int64_t taken = std::min(graph.size, count - 1);
      run(graph, ids, taken, start);
      ids += taken;
      count -= taken;
      start += taken;
    }
    run(decode_, ids, 1, start);
    void* found = nullptr;
    LITERT(LiteRtLockTensorBuffer(logits_, &found, kLiteRtLockRead));
    LITERT(LiteRtUnlockTensorBuffer(logits_));  // the processor's own memory: it stays where it is
    return static_cast<const float*>(found);
  }

 private:
  struct Graph {
    std::size_t signature = 0;
    int64_t size = 0;  // tokens that it takes
    LiteRtTensorBuffer tokens = nullptr, places = nullptr, mask = nullptr;
    std::vector<LiteRtTensorBuffer> inputs, outputs;
  };

  [[noreturn]] static void refuse(const std::string& what) {
    throw RunnerError("failed", "this runner writes no text with a file that has " + what);
  }

  // The smallest graph that takes so many tokens, else the largest; padding fills the cache too.
  Graph& fitting(int64_t count, int64_t start) {
    Graph* found = &decode_;
    for (auto& [size, graph] : prefills_) {
      if (start + size > places_) break;
      found = &graph;
      if (size >= count) break;
    }
    return *found;
  }

  void run(Graph& graph, const int64_t* ids, int64_t count, int64_t start) {
    fill<int32_t>(graph.tokens, [&](int32_t* tokens) {
      std::copy(ids, ids + count, tokens);
      std::fill(tokens + count, tokens + graph.size, 0);
    });
    fill<int32_t>(graph.places, [&](int32_t* places) {
      for (int64_t i = 0; i < graph.size; ++i) places[i] = static_cast<int32_t>(start + i);
    });
    fill<float>(graph.mask, [&](float* mask) {
      for (int64_t i = 0; i < graph.size; ++i, mask += places_) {
        std::fill(mask, mask + start + i + 1, 0.0f);
        std::fill(mask + start + i + 1, mask + places_, kMasked);
      }
    });
    LITERT(LiteRtRunCompiledModel(compiled_, graph.signature, graph.inputs.size(), graph.inputs.data(),
                                  graph.outputs.size(), graph.outputs.data()));
  }

  template <typename Number, typename Filling>
  static void fill(LiteRtTensorBuffer buffer, Filling&& filling) {
    void* memory = nullptr;
    LITERT(LiteRtLockTensorBuffer(buffer, &memory, kLiteRtLockWrite));
    filling(static_cast<Number*>(memory));
    LITERT(LiteRtUnlockTensorBuffer(buffer));
  }

  LiteRtTensorBuffer made(const Tensor& tensor, LiteRtTensorBufferRequirements wanted) {
    buffers_.push_back(buffer(environment_, tensor, wanted));
    return buffers_.back();
  }

  // A graph with buffers of its own, but for the cache and the logits.
  Graph graph(LiteRtSignature signature, std::size_t at) {
    Graph found;
    found.signature = at;
    LiteRtParamIndex inputs = 0, outputs = 0;
    LITERT(LiteRtGetNumSignatureInputs(signature, &inputs));
    LITERT(LiteRtGetNumSignatureOutputs(signature, &outputs));
    LiteRtTensor handle = nullptr;
    LiteRtTensorBufferRequirements wanted = nullptr;
    const char* name = nullptr;
    for (LiteRtParamIndex i = 0; i < inputs; ++i) {
      LITERT(LiteRtGetSignatureInputTensorByIndex(signature, i, &handle));
      LITERT(LiteRtGetSignatureInputName(signature, i, &name));
      LITERT(LiteRtGetCompiledModelInputBufferRequirements(compiled_, at, i, &wanted));
      const Tensor tensor(handle);
      const std::string known = name;
      const auto& shape = tensor.input.shape;
      if (known.rfind(kCache, 0) == 0 && tensor.input.dtype == Dtype::float32) {
        auto& one = caches_[known];
        if (one == nullptr) {
          one = made(tensor, wanted);
          fill<float>(one, [&](float* numbers) { std::fill(numbers, numbers + elements(shape), 0.0f); });
        }
        found.inputs.push_back(one);
        continue;
      }
      found.inputs.push_back(made(tensor, wanted));
      if (known == "tokens" && tensor.input.dtype == Dtype::int32 && shape.size() == 2) {
        found.tokens = found.inputs.back();
        found.size = shape[1];
      } else if (known == "input_pos" && tensor.input.dtype == Dtype::int32) {
        found.places = found.inputs.back();
      } else if (known == "mask" && tensor.input.dtype == Dtype::float32 && !shape.empty()) {
        found.mask = found.inputs.back();
        places_ = shape.back();
      } else {
        refuse("an input '" + known + "'");
      }
    }
    if (found.tokens == nullptr || found.places == nullptr || found.mask == nullptr) refuse("too few inputs");
    for (LiteRtParamIndex i = 0; i < outputs; ++i) {
      LITERT(LiteRtGetSignatureOutputTensorByIndex(signature, i, &handle));
      LITERT(LiteRtGetSignatureOutputName(signature, i, &name));
      const Tensor tensor(handle);
      const std::string known = name;
      if (caches_.count(known)) {
        found.outputs.push_back(caches_[known]);
      } else if (known == "logits" && tensor.input.dtype == Dtype::float32) {
        LITERT(LiteRtGetCompiledModelOutputBufferRequirements(compiled_, at, i, &wanted));
        logits_ = made(tensor, wanted);
        vocabulary = tensor.input.shape.back();
        found.outputs.push_back(logits_);
      } else {
        refuse("an output '" + known + "'");
      }
    }
    return found;
  }

  int threads_;
  int64_t places_ = 0;  // of the cache
  LiteRtEnvironment environment_ = nullptr;
  LiteRtModel model_ = nullptr;
  LiteRtCompiledModel compiled_ = nullptr;
  std::vector<LiteRtTensorBuffer> buffers_;
  std::map<std::string, LiteRtTensorBuffer> caches_;
  LiteRtTensorBuffer logits_ = nullptr;
  Graph decode_;
  std::map<int64_t, Graph> prefills_;
};

}  // namespace
}  // namespace edgekd::engine

extern "C" edgekd::engine::Writer* edgekd_open_writer(const edgekd::engine::Job& job, int64_t context) {
  return new edgekd::engine::LiteRtWriter(job, context);
}
