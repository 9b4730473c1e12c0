// Writes text with ONNX Runtime: a graph as onnxruntime-genai's model builder makes it, with fused attention. The keys and
// values that a run reads and those that it writes are one buffer of the context's length, as genai has it; so a run adds
// its own and copies no others.

#include <fstream>
#include <map>

#include "onnx_session.hpp"
#include "writer.hpp"

namespace edgekd::engine {
namespace {

constexpr const char* kPast = "past_key_values.";
constexpr const char* kPresent = "present.";
constexpr const char* kTurns = "cos_cache";  // the table by which attention turns keys: a row for each place

uint64_t varint(std::istream& file) {
  uint64_t value = 0;
  for (int shift = 0, byte = 128; byte >= 128 && shift < 64; shift += 7) {
    byte = file.get();
    if (byte < 0) throw RunnerError("failed", "the model's file ends within a message");
    value |= static_cast<uint64_t>(byte & 127) << shift;
  }
  return value;
}

// Calls `visit(field, value or size)` for each field of the protobuf message in the next `size` bytes; a visitor may read a
// field's bytes, and what it leaves is skipped.
template <typename Visit>
void fields(std::istream& file, uint64_t size, Visit&& visit) {
  const uint64_t end = static_cast<uint64_t>(file.tellg()) + size;
  while (static_cast<uint64_t>(file.tellg()) < end) {
    const uint64_t key = varint(file), kind = key & 7;
    const uint64_t told = kind == 5 ? 4 : kind == 1 ? 8 : varint(file);
    const uint64_t after = static_cast<uint64_t>(file.tellg()) + (kind == 0 ? 0 : told);
    if (!file || kind == 3 || kind == 4 || kind > 5 || after > end) throw RunnerError("failed", "the model's file is no message");
    visit(key >> 3, told);
    file.seekg(static_cast<std::streamoff>(after));
  }
}

// The shape of a constant of the graph, empty where there is none: the C API does not tell it.
std::vector<int64_t> shape_of_constant(const std::string& path, const std::string& wanted) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  const auto size = static_cast<uint64_t>(file.tellg());
  file.seekg(0);
  std::vector<int64_t> found;
  fields(file, size, [&](uint64_t in_model, uint64_t graph) {
    if (in_model != 7) return;
    fields(file, graph, [&](uint64_t in_graph, uint64_t tensor) {
      if (in_graph != 5 || !found.empty()) return;
      std::vector<int64_t> shape;
      std::string name;
      fields(file, tensor, [&](uint64_t field, uint64_t told) {
        if (field == 1) shape.push_back(static_cast<int64_t>(told));
        if (field == 8) {
          name.resize(told);
          file.read(name.data(), static_cast<std::streamsize>(told));
        }
      });
      if (name == wanted) found = shape;
    });
  });
  return found;
}

struct Release {
  void operator()(OrtValue* value) const { ort().ReleaseValue(value); }
};
using Value = std::unique_ptr<OrtValue, Release>;

class OnnxWriter : public Writer {
 public:
  OnnxWriter(const Job& job, int64_t wanted) : threads_(job.threads) {
    OrtEnv* env = nullptr;
    check(ort().CreateEnv(kOrtLogError, "edgekd", &env));
    check(ort().CreateCpuMemoryInfo(kOrtArenaAllocator, kOrtMemTypeDefault, &memory_));
    session_ = open_session(env, job);
    const std::vector<int64_t> turns = shape_of_constant(job.model, kTurns);
    if (turns.size() != 2) throw RunnerError("failed", "the model has no cache that this runner knows");
    context = std::min(wanted, turns[0]);
    mask_.assign(context, 1);
    std::size_t inputs = 0, outputs = 0;
    check(ort().SessionGetInputCount(session_, &inputs));
    check(ort().SessionGetOutputCount(session_, &outputs));
    for (std::size_t i = 0; i < inputs; ++i) {
      const Input input = input_of(session_, i);
      if (input.name.rfind(kPast, 0) == 0) add_cache(input, 2 * turns[1]);
      else if (input.name != "input_ids" && input.name != "attention_mask") refuse("an input '" + input.name + "'");
    }
    std::size_t caches = 0;
    for (std::size_t i = 0; i < outputs; ++i) {
      const Input output = output_of(session_, i);
      caches += output.name.rfind(kPresent, 0) == 0;
      if (output.name == "logits" && output.dtype == Dtype::float32) vocabulary = output.shape.back();
    }
    if (vocabulary < 1 || caches != caches_.size()) refuse("no logits, or other caches in than out");
    row_.resize(vocabulary);
    one_ = tensor(row_.data(), {1, 1, vocabulary}, kOrtFloat);
    for (auto& [name, cache] : caches_) {
      input_names_.push_back(name.c_str());
      output_names_.push_back(cache.output.c_str());
      inputs_.push_back(cache.value.get());
      outputs_.push_back(cache.value.get());
    }
  }

  ~OnnxWriter() override {
    ort().ReleaseSession(session_);
    ort().ReleaseMemoryInfo(memory_);
  }

  json observed() override {
    return {{"backend", "CPUExecutionProvider"},  // no other is asked for
            {"threads", threads_},
            {"inter_op_threads", 1},
            {"graph_optimization", "all"},
            {"x64quantprecision", quant_precision()}};
  }

 protected:
  const float* logits(const int64_t* ids, int64_t count, int64_t start) override {
    const Value tokens = tensor(const_cast<int64_t*>(ids), {1, count}, kOrtInt64);
    const Value mask = tensor(mask_.data(), {1, start + count}, kOrtInt64);
    inputs_[0] = tokens.get();
    inputs_[1] = mask.get();
    many_.reset();
    outputs_[0] = count == 1 ? one_.get() : nullptr;  // the logits of a prompt: as many rows as the graph gives
    check(ort().Run(session_, nullptr, input_names_.data(), inputs_.data(), inputs_.size(), output_names_.data(),
                    outputs_.size(), outputs_.data()));
    if (count == 1) return row_.data();
    many_.reset(outputs_[0]);
    OrtTensorTypeAndShapeInfo* info = nullptr;
    check(ort().GetTensorTypeAndShape(many_.get(), &info));
    const std::size_t size = elements(shape_of(info));
    ort().ReleaseTensorTypeAndShapeInfo(info);
    void* data = nullptr;
    check(ort().GetTensorMutableData(many_.get(), &data));
    return static_cast<const float*>(data) + size - vocabulary;
  }

 private:
  struct Cache {
    std::string output;
    std::vector<float> numbers;
    Value value;
  };

  [[noreturn]] static void refuse(const std::string& what) {
    throw RunnerError("failed", "this runner writes no text with a graph that has " + what);
  }

  void add_cache(const Input& input, int64_t width) {
    if (input.dtype != Dtype::float32 || input.shape.size() != 4 || input.shape[1] < 1) {
      refuse("a cache '" + input.name + "' other than float32 [1, heads, places, width]");
    }
    const std::vector<int64_t> shape{1, input.shape[1], context, width};
    Cache& made = caches_[input.name];
    made.output = kPresent + input.name.substr(std::string(kPast).size());
    made.numbers.resize(elements(shape));
    made.value = tensor(made.numbers.data(), shape, kOrtFloat);
  }

  template <typename Number>
  Value tensor(Number* data, const std::vector<int64_t>& shape, int type) {
    OrtValue* made = nullptr;
    check(ort().CreateTensorWithDataAsOrtValue(memory_, data, elements(shape) * sizeof *data, shape.data(), shape.size(),
                                               type, &made));
    return Value(made);
  }

  int threads_;
  OrtMemoryInfo* memory_ = nullptr;
  OrtSession* session_ = nullptr;
  std::map<std::string, Cache> caches_;
  std::vector<int64_t> mask_;
  std::vector<float> row_;
  Value one_, many_;
  std::vector<const char*> input_names_{"input_ids", "attention_mask"}, output_names_{"logits"};
  std::vector<const OrtValue*> inputs_{nullptr, nullptr};
  std::vector<OrtValue*> outputs_{nullptr};
};

}  // namespace
}  // namespace edgekd::engine

extern "C" edgekd::engine::Writer* edgekd_open_writer(const edgekd::engine::Job& job, int64_t context) {
  return new edgekd::engine::OnnxWriter(job, context);
}
