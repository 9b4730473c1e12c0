// ONNX Runtime, with the settings of the Python runner. Timed: Run(), whose inputs are made before, and which allocates
// its outputs and drops those of the run before.

#include <dirent.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmath>
#include <fstream>
#include <map>

#include "onnx_session.hpp"

namespace edgekd::engine {
namespace {

struct OnnxInputs : Prepared {
  std::vector<std::vector<std::byte>> bytes;
  std::vector<OrtValue*> values;

  ~OnnxInputs() override {
    for (OrtValue* value : values) ort().ReleaseValue(value);
  }
};

class OnnxModel : public Model {
 public:
  OnnxModel(const OrtEnv* env, const Job& job) : env_(env), job_(job) {
    check(ort().CreateCpuMemoryInfo(kOrtArenaAllocator, kOrtMemTypeDefault, &memory_));
    session_ = open_session(env, job);
    std::size_t inputs = 0, outputs = 0;
    check(ort().SessionGetInputCount(session_, &inputs));
    check(ort().SessionGetOutputCount(session_, &outputs));
    std::string strange;
    for (std::size_t i = 0; i < inputs; ++i) {
      inputs_.push_back(input_of(session_, i));
      if (inputs_[i].dtype == Dtype::other || inputs_[i].dtype == Dtype::int8 || inputs_[i].dtype == Dtype::uint8) {
        strange += (strange.empty() ? "" : ", ") + inputs_[i].name;
      }
    }
    if (!strange.empty()) throw RunnerError("failed", "inputs of a type that no job can give: " + strange);
    for (std::size_t i = 0; i < outputs; ++i) {
      output_names_.push_back(output_of(session_, i).name);
    }
    for (const auto& one : inputs_) input_pointers_.push_back(one.name.c_str());
    for (const auto& one : output_names_) output_pointers_.push_back(one.c_str());
    outputs_.resize(outputs, nullptr);
  }

  ~OnnxModel() override {
    drop();
    ort().ReleaseSession(session_);
    ort().ReleaseMemoryInfo(memory_);
  }

  std::vector<Input> describe() override { return inputs_; }

  std::unique_ptr<Prepared> prepare(const Row& row) override {
    auto made = std::make_unique<OnnxInputs>();
    for (const auto& input : inputs_) {
      const Values& values = row.at(input.name);
      made->bytes.push_back(values.as(input.dtype));
      OrtValue* value = nullptr;
      check(ort().CreateTensorWithDataAsOrtValue(memory_, made->bytes.back().data(), made->bytes.back().size(),
                                                 values.shape.data(), values.shape.size(), element_of(input.dtype),
                                                 &value));
      made->values.push_back(value);
    }
    return made;
  }

  void call(Prepared& inputs) override {
    drop();
    run(session_, inputs, outputs_);
  }

  Output output() override {
    OrtTensorTypeAndShapeInfo* info = nullptr;
    check(ort().GetTensorTypeAndShape(outputs_.at(0), &info));
    int type = 0;
    check(ort().GetTensorElementType(info, &type));
    Output found{shape_of(info), {}};
    ort().ReleaseTensorTypeAndShapeInfo(info);
    void* data = nullptr;
    check(ort().GetTensorMutableData(outputs_[0], &data));
    const std::size_t count = elements(found.shape);
    const auto copy = [&](const auto* values) { found.values.assign(values, values + count); };
    switch (dtype_of_element(type)) {
      case Dtype::float32: copy(static_cast<const float*>(data)); break;
      case Dtype::int64: copy(static_cast<const int64_t*>(data)); break;
      case Dtype::int32: copy(static_cast<const int32_t*>(data)); break;
      case Dtype::int8: copy(static_cast<const int8_t*>(data)); break;
      case Dtype::uint8: copy(static_cast<const uint8_t*>(data)); break;
      case Dtype::other: throw RunnerError("failed", "the first output has a type that this runner does not read");
    }
    return found;
  }

  json observed() override {
    return {{"backend", "CPUExecutionProvider"},  // no other is asked for
            {"threads", job_.threads},
            {"inter_op_threads", 1},
            {"graph_optimization", "all"},
            {"x64quantprecision", quant_precision()}};
  }

  json profile(std::vector<std::unique_ptr<Prepared>>& inputs, int runs) override {
    char folder[] = "/tmp/edgekd-profile-XXXXXX";
    std::string place = mkdtemp(folder) != nullptr ? folder : "";
    if (place.empty()) {  // a phone has no /tmp; the working folder is the transport's own
      char local[] = "./edgekd-profile-XXXXXX";
      if (mkdtemp(local) == nullptr) throw RunnerError("failed", "no folder can be made for the profile");
      place = local;
    }
    OrtSession* timed = open_session(env_, job_, (place + "/profile").c_str());
    std::vector<OrtValue*> outputs(outputs_.size(), nullptr);
    for (int number = 0; number < runs; ++number) {
      run(timed, *inputs[number % inputs.size()], outputs);
      for (OrtValue*& value : outputs) {
        ort().ReleaseValue(value);
        value = nullptr;
      }
    }
    char* name = nullptr;
    check(ort().SessionEndProfiling(timed, allocator(), &name));
    const std::string path = taken(name);
    ort().ReleaseSession(timed);
    std::ifstream file(path);
    const json events = json::parse(file);
    unlink(path.c_str());
    rmdir(place.c_str());
    return operators(events, runs);
  }

 private:
  void run(OrtSession* session, Prepared& inputs, std::vector<OrtValue*>& outputs) {
    auto& values = static_cast<OnnxInputs&>(inputs).values;
    check(ort().Run(session, nullptr, input_pointers_.data(), values.data(), values.size(), output_pointers_.data(),
                    outputs.size(), outputs.data()));
  }

  void drop() {
    for (OrtValue*& value : outputs_) {
      if (value != nullptr) ort().ReleaseValue(value);
      value = nullptr;
    }
  }

  // The profile's events as means of a run, by node; it counts in microseconds.
  static json operators(const json& events, int runs) {
    std::vector<std::string> order;
    std::map<std::string, json> found;
    const std::string ending = "_kernel_time";
    for (const auto& event : events) {
      const std::string name = event.value("name", "");
      if (event.value("cat", "") != "Node" || name.size() <= ending.size() ||
          name.compare(name.size() - ending.size(), ending.size(), ending) != 0) {
        continue;
      }
      const std::string node = name.substr(0, name.size() - ending.size());
      if (!found.count(node)) {
        order.push_back(node);
        found[node] = {{"name", node}, {"type", event["args"]["op_name"]}, {"ns", 0.0}, {"calls", 0.0}};
      }
      found[node]["ns"] = found[node]["ns"].get<double>() + event["dur"].get<double>() * 1000 / runs;
      found[node]["calls"] = found[node]["calls"].get<double>() + 1.0 / runs;
    }
    json rows = json::array();
    for (const auto& node : order) {
      json row = found[node];
      row["calls"] = std::round(row["calls"].get<double>() * 1e6) / 1e6;
      rows.push_back(row);
    }
    return rows;
  }

  const OrtEnv* env_;
  Job job_;
  OrtMemoryInfo* memory_ = nullptr;
  OrtSession* session_ = nullptr;
  std::vector<Input> inputs_;
  std::vector<std::string> output_names_;
  std::vector<const char*> input_pointers_, output_pointers_;
  std::vector<OrtValue*> outputs_;
};

class OnnxRuntime : public Runtime {
 public:
  OnnxRuntime() { check(ort().CreateEnv(kOrtLogError, "edgekd", &env_)); }
  const char* name() override { return "onnx"; }
  json versions() override { return {{"onnxruntime", OrtGetApiBase()->GetVersionString()}}; }
  std::unique_ptr<Model> load(const Job& job) override { return std::make_unique<OnnxModel>(env_, job); }

 private:
  OrtEnv* env_ = nullptr;
};

}  // namespace
}  // namespace edgekd::engine

extern "C" edgekd::engine::Runtime* edgekd_open_runtime() { return new edgekd::engine::OnnxRuntime; }
