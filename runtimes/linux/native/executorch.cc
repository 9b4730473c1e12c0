// ExecuTorch with its optimized and quantized kernels and XNNPACK. Timed: execute(), which copies the inputs into the
// program's own memory and runs it; the Python runner's also copies the outputs.

#include "executorch_session.hpp"

namespace edgekd::engine {
namespace {

Dtype dtype_of_scalar(ScalarType type) {
  switch (type) {
    case ScalarType::Long: return Dtype::int64;
    case ScalarType::Int: return Dtype::int32;
    case ScalarType::Float: return Dtype::float32;
    case ScalarType::Char: return Dtype::int8;
    case ScalarType::Byte: return Dtype::uint8;
    default: return Dtype::other;
  }
}

ScalarType scalar_of(Dtype dtype) {
  return dtype == Dtype::int64 ? ScalarType::Long : dtype == Dtype::int32 ? ScalarType::Int : ScalarType::Float;
}

struct ExecuTorchInputs : Prepared {
  std::vector<std::vector<std::byte>> bytes;
  std::vector<TensorPtr> tensors;
  std::vector<EValue> values;
};

class ExecuTorchModel : public Model {
 public:
  explicit ExecuTorchModel(const Job& job) : job_(job), module_(job.model) {
    check(module_.load(), "loading the program");
    check(module_.load_method("forward"), "loading its method 'forward'");
  }

  std::vector<Input> describe() override {
    auto meta = module_.method_meta("forward");
    check(meta.error(), "describing the method 'forward'");
    std::vector<Input> found;
    const std::size_t count = meta->num_inputs();
    for (std::size_t i = 0; i < count; ++i) {
      auto tensor = meta->input_tensor_meta(i);
      check(tensor.error(), "describing an input");
      const bool named = job_.signature.size() == count;
      Input input{named ? job_.signature[i].name : "input_" + std::to_string(i), dtype_of_scalar(tensor->scalar_type()), {}};
      for (const auto size : tensor->sizes()) input.shape.push_back(size);
      found.push_back(std::move(input));
    }
    return found;
  }

  std::unique_ptr<Prepared> prepare(const Row& row) override {
    auto made = std::make_unique<ExecuTorchInputs>();
    for (const auto& input : job_.signature) {
      const Values& values = row.at(input.name);
      made->bytes.push_back(values.as(input.dtype));
      std::vector<executorch::aten::SizesType> sizes(values.shape.begin(), values.shape.end());
      made->tensors.push_back(
          executorch::extension::from_blob(made->bytes.back().data(), std::move(sizes), scalar_of(input.dtype)));
      made->values.emplace_back(made->tensors.back());
    }
    return made;
  }

  void call(Prepared& inputs) override {
    auto result = module_.execute("forward", static_cast<ExecuTorchInputs&>(inputs).values);
    check(result.error(), "the inference");
    outputs_ = std::move(result.get());
  }

  Output output() override {
    if (outputs_.empty() || !outputs_[0].isTensor()) throw RunnerError("failed", "the first output is no tensor");
    const auto& tensor = outputs_[0].toTensor();
    Output found;
    for (const auto size : tensor.sizes()) found.shape.push_back(size);
    const std::size_t count = static_cast<std::size_t>(tensor.numel());
    const auto copy = [&](const auto* values) { found.values.assign(values, values + count); };
    switch (dtype_of_scalar(tensor.scalar_type())) {
      case Dtype::float32: copy(tensor.const_data_ptr<float>()); break;
      case Dtype::int64: copy(tensor.const_data_ptr<int64_t>()); break;
      case Dtype::int32: copy(tensor.const_data_ptr<int32_t>()); break;
      case Dtype::int8: copy(tensor.const_data_ptr<int8_t>()); break;
      case Dtype::uint8: copy(tensor.const_data_ptr<uint8_t>()); break;
      case Dtype::other: throw RunnerError("failed", "the first output has a type that this runner does not read");
    }
    return found;
  }

  json observed() override {
    return {{"threads", get_threadpool()->get_thread_count()}, {"backend", backends(job_.model)}};
  }

 private:
  Job job_;
  Module module_;
  std::vector<EValue> outputs_;
};

class ExecuTorchRuntime : public Runtime {
 public:
  const char* name() override { return "executorch"; }
  json versions() override { return {{"executorch", EDGEKD_RUNTIME_VERSION}}; }
  std::unique_ptr<Model> load(const Job& job) override {
    set_threads(job.threads);
    return std::make_unique<ExecuTorchModel>(job);
  }
};

}  // namespace
}  // namespace edgekd::engine

extern "C" edgekd::engine::Runtime* edgekd_open_runtime() { return new edgekd::engine::ExecuTorchRuntime; }
