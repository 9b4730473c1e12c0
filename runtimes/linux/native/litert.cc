// LiteRT on the processor, with XNNPACK as LiteRT applies it. Timed: copying the inputs into the runtime's buffers, the
// run, and copying the first output out of its buffer, which is what the Python runner times.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>

#include "litert_session.hpp"

namespace edgekd::engine {
namespace {

struct Signature {
  std::vector<Tensor> inputs, outputs;  // in the order in which LiteRT takes their buffers
  std::vector<std::string> names;       // the signature's own names of the inputs
  std::vector<std::string> rows;        // which of a row's inputs each input takes
  std::size_t first = 0;                // which output is the model's first
  int64_t length = 1;                   // of its token inputs
};

struct LiteRtInputs : Prepared {
  std::size_t signature = 0;
  std::vector<std::vector<std::byte>> bytes;
};

// The model compiled for the processor, with the buffers of every signature that was asked for.
class Compiled {
 public:
  Compiled(LiteRtEnvironment environment, LiteRtModel model, const std::vector<Signature>& signatures, int threads,
           bool profiling)
      : environment_(environment), signatures_(signatures), buffers_(signatures.size()) {
    compiled_ = compiled(environment, model, threads, profiling);
  }

  ~Compiled() {
    for (auto& some : buffers_) {
      for (auto* one : some.inputs) LiteRtDestroyTensorBuffer(one);
      for (auto* one : some.outputs) LiteRtDestroyTensorBuffer(one);
    }
    LiteRtDestroyCompiledModel(compiled_);
  }

  Compiled(const Compiled&) = delete;
  Compiled& operator=(const Compiled&) = delete;

  LiteRtCompiledModel handle() const { return compiled_; }

  void allocate(std::size_t at) {
    const Signature& signature = signatures_[at];
    Buffers& some = buffers_[at];
    if (!some.outputs.empty()) return;
    LiteRtTensorBufferRequirements wanted = nullptr;
    for (std::size_t i = 0; i < signature.inputs.size(); ++i) {
      LITERT(LiteRtGetCompiledModelInputBufferRequirements(compiled_, at, i, &wanted));
      some.inputs.push_back(buffer(environment_, signature.inputs[i], wanted));
    }
    for (std::size_t i = 0; i < signature.outputs.size(); ++i) {
      LITERT(LiteRtGetCompiledModelOutputBufferRequirements(compiled_, at, i, &wanted));
      some.outputs.push_back(buffer(environment_, signature.outputs[i], wanted));
    }
  }

  void run(const LiteRtInputs& inputs, std::vector<std::byte>& output) {
    Buffers& some = buffers_[inputs.signature];
    void* memory = nullptr;
    for (std::size_t i = 0; i < inputs.bytes.size(); ++i) {
      LITERT(LiteRtLockTensorBuffer(some.inputs[i], &memory, kLiteRtLockWrite));
      std::memcpy(memory, inputs.bytes[i].data(), inputs.bytes[i].size());
      LITERT(LiteRtUnlockTensorBuffer(some.inputs[i]));
    }
    LITERT(LiteRtRunCompiledModel(compiled_, inputs.signature, some.inputs.size(), some.inputs.data(),
                                  some.outputs.size(), some.outputs.data()));
    LiteRtTensorBuffer first = some.outputs[signatures_[inputs.signature].first];
    LITERT(LiteRtLockTensorBuffer(first, &memory, kLiteRtLockRead));
    std::memcpy(output.data(), memory, output.size());
    LITERT(LiteRtUnlockTensorBuffer(first));
  }

 private:
  struct Buffers {
    std::vector<LiteRtTensorBuffer> inputs, outputs;
  };

  LiteRtEnvironment environment_;
  const std::vector<Signature>& signatures_;
  std::vector<Buffers> buffers_;
  LiteRtCompiledModel compiled_ = nullptr;
};

class LiteRtRunner : public Model {
 public:
  LiteRtRunner(LiteRtEnvironment environment, const Job& job) : environment_(environment), job_(job) {
    LITERT(LiteRtCreateModelFromFile(environment, job.model.c_str(), &model_));
    read_signatures();
    compiled_ = std::make_unique<Compiled>(environment, model_, signatures_, job.threads, false);
    if (signatures_.size() == 1 && !describes()) name_inputs(signatures_[0]);
  }

  ~LiteRtRunner() override {
    compiled_.reset();  // it reads the model to its end
    LiteRtDestroyModel(model_);
  }

  std::vector<Input> describe() override {
    const Signature& signature = signatures_[0];
    std::vector<Input> found;
    if (signatures_.size() == 1) {
      Signature named = signature;
      const bool fits = job_.signature.size() == signature.inputs.size();
      if (fits) name_inputs(named);
      for (const auto& wanted : job_.signature) {  // in the job's order, as far as it has one
        for (std::size_t i = 0; fits && i < named.rows.size(); ++i) {
          if (named.rows[i] == wanted.name) found.push_back({wanted.name, named.inputs[i].input.dtype, named.inputs[i].input.shape});
        }
      }
      for (std::size_t i = 0; !fits && i < signature.inputs.size(); ++i) found.push_back(signature.inputs[i].input);
      return found;
    }
    for (std::size_t i = 0; i < signature.inputs.size(); ++i) {
      Input input{signature.names[i], signature.inputs[i].input.dtype, signature.inputs[i].input.shape};
      for (const auto& other : signatures_) {
        const auto at = std::find(other.names.begin(), other.names.end(), input.name) - other.names.begin();
        const auto& shape = other.inputs.at(at).input.shape;
        for (std::size_t axis = 0; axis < input.shape.size() && axis < shape.size(); ++axis) {
          if (shape[axis] != input.shape[axis]) input.shape[axis] = -1;
        }
      }
      found.push_back(std::move(input));
    }
    std::sort(found.begin(), found.end(), [](auto& a, auto& b) { return a.name < b.name; });
    return found;
  }

  std::unique_ptr<Prepared> prepare(const Row& row) override {
    auto made = std::make_unique<LiteRtInputs>();
    if (signatures_.size() > 1) made->signature = signature_of(row.tokens);
    const Signature& signature = signatures_[made->signature];
    for (std::size_t i = 0; i < signature.inputs.size(); ++i) {
      const std::string& name = signatures_.size() > 1 ? signature.names[i] : signature.rows[i];
      const Values& values = row.at(name);
      const Input& input = signature.inputs[i].input;
      if (values.shape != input.shape) {
        throw RunnerError("failed", "input '" + name + "' has the shape " + json(values.shape).dump() +
                                        ", the model wants " + json(input.shape).dump());
      }
      made->bytes.push_back(values.as(input.dtype));
    }
    compiled_->allocate(made->signature);
    const Input& output = signature.outputs[signature.first].input;
    output_.resize(std::max(output_.size(), elements(output.shape) * bytes_of(output.dtype)));
    return made;
  }

  void call(Prepared& inputs) override {
    const auto& some = static_cast<const LiteRtInputs&>(inputs);
    last_ = some.signature;
    const Input& output = signatures_[last_].outputs[signatures_[last_].first].input;
    output_.resize(elements(output.shape) * bytes_of(output.dtype));  // never allocates: prepare() reserved it
    compiled_->run(some, output_);
  }

  Output output() override {
    const Tensor& tensor = signatures_[last_].outputs[signatures_[last_].first];
    // Of several lengths the first one's scale, as in the Python runner: they are one model.
    const LiteRtQuantizationPerTensor& quantization = signatures_[0].outputs[signatures_[0].first].quantization;
    Output found{tensor.input.shape, {}};
    const std::size_t count = elements(found.shape);
    const auto whole = [&](const auto* values) {
      found.values = dequantized(values, count, quantization.scale, quantization.zero_point);
    };
    switch (tensor.input.dtype) {
      case Dtype::float32: {
        const auto* values = reinterpret_cast<const float*>(output_.data());
        found.values.assign(values, values + count);
        break;
      }
      case Dtype::int8: whole(reinterpret_cast<const int8_t*>(output_.data())); break;
      case Dtype::uint8: whole(reinterpret_cast<const uint8_t*>(output_.data())); break;
      case Dtype::int32: whole(reinterpret_cast<const int32_t*>(output_.data())); break;
      case Dtype::int64: whole(reinterpret_cast<const int64_t*>(output_.data())); break;
      case Dtype::other: throw RunnerError("failed", "the first output has a type that this runner does not read");
    }
    return found;
  }

  json observed() override {
    bool all = false;
    LITERT(LiteRtCompiledModelIsFullyAccelerated(compiled_->handle(), &all));
    return {{"backend", all || partly_delegated() ? "XNNPACK" : "reference kernels"},
            {"fully_delegated", all},
            {"threads", job_.threads}};
  }

  // LiteRT counts in whole microseconds: a fast operator's mean is of numbers like 0 and 1.
  json profile(std::vector<std::unique_ptr<Prepared>>& inputs, int runs) override {
    Compiled timed(environment_, model_, signatures_, job_.threads, true);
    for (const auto& one : inputs) timed.allocate(static_cast<LiteRtInputs&>(*one).signature);
    const auto events = events_of(timed, [&] {
      for (int number = 0; number < runs; ++number) {
        const auto& one = static_cast<const LiteRtInputs&>(*inputs[number % inputs.size()]);
        const Signature& signature = signatures_[one.signature];
        const Input& output = signature.outputs[signature.first].input;
        std::vector<std::byte> bytes(elements(output.shape) * bytes_of(output.dtype));
        timed.run(one, bytes);
      }
    });
    std::vector<std::string> order;
    std::map<std::string, json> found;
    for (const auto& event : events) {
      if (event.delegate_node) continue;  // its time is counted operator by operator
      if (!found.count(event.name)) {
        order.push_back(event.name);
        const std::string type = event.name.substr(0, event.name.find_first_of("(:"));
        found[event.name] = {{"name", event.name}, {"type", type.substr(0, type.find_last_not_of(' ') + 1)}, {"ns", 0.0}, {"calls", 0.0}};
      }
      json& row = found[event.name];
      row["ns"] = row["ns"].get<double>() + static_cast<double>(event.us) * 1000 / runs;
      row["calls"] = row["calls"].get<double>() + 1.0 / runs;
    }
    json rows = json::array();
    for (const auto& name : order) {
      json& row = found[name];
      row["calls"] = std::round(row["calls"].get<double>() * 1e6) / 1e6;
      rows.push_back(row);
    }
    return rows;
  }

 private:
  struct Event {
    std::string name;
    uint64_t us;
    bool inner;          // an operator in a delegate
    bool delegate_node;  // all that a delegate took, where the delegate tells its operators too
  };

  bool describes() const { return job_.phase == "describe"; }

  template <typename Action>
  std::vector<Event> events_of(Compiled& compiled, Action&& action) {
    LiteRtProfiler profiler = nullptr;
    LITERT(LiteRtCompiledModelGetProfiler(compiled.handle(), &profiler));
    if (profiler == nullptr) throw RunnerError("unavailable", "this LiteRT was built without its profiler");
    LITERT(LiteRtStartProfiler(profiler));
    action();
    LITERT(LiteRtStopProfiler(profiler));
    int count = 0;
    LITERT(LiteRtGetNumProfilerEvents(profiler, &count));
    std::vector<ProfiledEventData> events(count);
    LITERT(LiteRtGetProfilerEvents(profiler, count, events.data()));
    bool inside = false;  // whether a delegate tells its operators
    for (const auto& one : events) inside |= (one.event_type & (kLiteRtDelegateOperatorEvent | kLiteRtDelegateProfiledEvent)) != 0;
    std::vector<Event> found;
    for (const auto& one : events) {
      const std::string name = one.tag == nullptr ? "" : one.tag;
      const bool own = (one.event_type & kLiteRtOperatorEvent) != 0;
      const bool inner = (one.event_type & (kLiteRtDelegateOperatorEvent | kLiteRtDelegateProfiledEvent)) != 0;
      if (own || inner) found.push_back({name, one.elapsed_time_us, inner, own && inside && name.find("Delegate") != std::string::npos});
    }
    return found;
  }

  // Whether XNNPACK took some of the operators: seen in a profile of one run on zeros, made when all else is done.
  bool partly_delegated() {
    try {
      Compiled timed(environment_, model_, signatures_, job_.threads, true);
      timed.allocate(0);
      LiteRtInputs zeros;
      for (const auto& tensor : signatures_[0].inputs) {
        zeros.bytes.emplace_back(elements(tensor.input.shape) * bytes_of(tensor.input.dtype));
      }
      const Input& output = signatures_[0].outputs[signatures_[0].first].input;
      std::vector<std::byte> bytes(elements(output.shape) * bytes_of(output.dtype));
      const auto events = events_of(timed, [&] { timed.run(zeros, bytes); });
      return std::any_of(events.begin(), events.end(), [](auto& one) { return one.inner || one.name.find("Delegate") != std::string::npos; });
    } catch (const RunnerError&) {
      return false;
    }
  }

  void read_signatures() {
    LiteRtParamIndex count = 0;
    LITERT(LiteRtGetNumModelSignatures(model_, &count));
    for (LiteRtParamIndex at = 0; at < count; ++at) {
      LiteRtSignature handle = nullptr;
      LITERT(LiteRtGetModelSignature(model_, at, &handle));
      Signature signature;
      LiteRtParamIndex inputs = 0, outputs = 0;
      LITERT(LiteRtGetNumSignatureInputs(handle, &inputs));
      LITERT(LiteRtGetNumSignatureOutputs(handle, &outputs));
      LiteRtTensor tensor = nullptr;
      for (LiteRtParamIndex i = 0; i < inputs; ++i) {
        LITERT(LiteRtGetSignatureInputTensorByIndex(handle, i, &tensor));
        signature.inputs.emplace_back(tensor);
        const char* name = nullptr;
        LITERT(LiteRtGetSignatureInputName(handle, i, &name));
        signature.names.emplace_back(name);
      }
      for (LiteRtParamIndex i = 0; i < outputs; ++i) {
        LITERT(LiteRtGetSignatureOutputTensorByIndex(handle, i, &tensor));
        signature.outputs.emplace_back(tensor);
      }
      if (signature.outputs.empty()) throw RunnerError("failed", "the model has no output");
      LiteRtSubgraph subgraph = nullptr;
      LITERT(LiteRtGetSignatureSubgraph(handle, &subgraph));
      LITERT(LiteRtGetSubgraphOutput(subgraph, 0, &tensor));
      for (std::size_t i = 0; i < signature.outputs.size(); ++i) {
        if (signature.outputs[i].index == Tensor(tensor).index) signature.first = i;
      }
      for (const auto& one : signature.inputs) {
        if (one.input.shape.size() == 2) {
          signature.length = one.input.shape[1];
          break;
        }
      }
      signatures_.push_back(std::move(signature));
    }
    if (signatures_.empty()) throw RunnerError("failed", "the model has no signature");
  }

  // Which input of a row each of the file's takes: by name where the file kept names, else by position.
  void name_inputs(Signature& signature) {
    std::vector<std::size_t> order(signature.inputs.size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) {
      return signature.inputs[a].input.name < signature.inputs[b].input.name;
    });
    std::vector<std::string> by_name(order.size());
    bool named = job_.signature.size() <= order.size();
    for (const auto& one : job_.signature) {
      std::vector<std::size_t> matches;
      for (const std::size_t i : order) {
        if (signature.inputs[i].input.name.find(one.name) != std::string::npos) matches.push_back(i);
      }
      named = named && matches.size() == 1 && by_name[matches[0]].empty();
      if (named) by_name[matches[0]] = one.name;
    }
    if (job_.signature.size() != order.size()) {
      throw RunnerError("job", "the model has " + std::to_string(order.size()) + " inputs, the job's signature " +
                                   std::to_string(job_.signature.size()));
    }
    signature.rows = by_name;
    if (named) return;
    for (std::size_t i = 0; i < order.size(); ++i) signature.rows[order[i]] = job_.signature[i].name;
  }

  std::size_t signature_of(int64_t length) const {
    std::vector<int64_t> lengths;
    for (std::size_t i = 0; i < signatures_.size(); ++i) {
      if (signatures_[i].length == length) return i;
      lengths.push_back(signatures_[i].length);
    }
    std::sort(lengths.begin(), lengths.end());
    throw RunnerError("job", "the file has no signature of length " + std::to_string(length) + " (it has " +
                                 json(lengths).dump() + ")");
  }

  LiteRtEnvironment environment_;
  Job job_;
  LiteRtModel model_ = nullptr;
  std::vector<Signature> signatures_;
  std::unique_ptr<Compiled> compiled_;
  std::vector<std::byte> output_;
  std::size_t last_ = 0;
};

class LiteRtRuntime : public Runtime {
 public:
  LiteRtRuntime() { LITERT(LiteRtCreateEnvironment(0, nullptr, &environment_)); }
  const char* name() override { return "litert"; }
  json versions() override { return {{"ai-edge-litert", EDGEKD_RUNTIME_VERSION}}; }
  std::unique_ptr<Model> load(const Job& job) override { return std::make_unique<LiteRtRunner>(environment_, job); }

 private:
  LiteRtEnvironment environment_ = nullptr;
};

}  // namespace
}  // namespace edgekd::engine

extern "C" edgekd::engine::Runtime* edgekd_open_runtime() { return new edgekd::engine::LiteRtRuntime; }
