// Writes text with ExecuTorch: `forward(tokens, place of the first)` gives the logits after the last token, over a cache in
// the program's own memory.

#include "executorch_session.hpp"
#include "writer.hpp"

namespace edgekd::engine {
namespace {

using executorch::aten::SizesType;

class ExecuTorchWriter : public Writer {
 public:
  ExecuTorchWriter(const Job& job, int64_t wanted) : model_(job.model), module_(job.model) {
    set_threads(job.threads);
    check(module_.load(), "loading the program");
    context = std::min(wanted, told("get_max_context_len"));
    vocabulary = told("get_vocab_size");
    check(module_.load_method("forward"), "loading its method 'forward'");
  }

  json observed() override {
    return {{"threads", get_threadpool()->get_thread_count()},
            {"backend", backends(model_)},
            {"attention", "this runner's own"}};  // write_executorch_attention.cc
  }

 protected:
  const float* logits(const int64_t* ids, int64_t count, int64_t start) override {
    const auto tokens = executorch::extension::from_blob(const_cast<int64_t*>(ids), {1, static_cast<SizesType>(count)},
                                                         ScalarType::Long);
    const auto place = executorch::extension::from_blob(&start, {1}, ScalarType::Long);
    auto result = module_.execute("forward", {EValue(tokens), EValue(place)});
    check(result.error(), "the inference");
    outputs_ = std::move(result.get());
    const bool good = !outputs_.empty() && outputs_[0].isTensor() &&
                      outputs_[0].toTensor().scalar_type() == ScalarType::Float &&
                      outputs_[0].toTensor().numel() == vocabulary;
    if (!good) throw RunnerError("failed", "the first output is not a token's logits");
    return outputs_[0].toTensor().const_data_ptr<float>();
  }

 private:
  int64_t told(const char* method) {
    auto result = module_.get(method);
    if (!result.ok() || !result->isInt()) {
      throw RunnerError("failed", std::string("the program writes no text: it does not tell ") + method);
    }
    return result->toInt();
  }

  std::string model_;
  Module module_;
  std::vector<EValue> outputs_;
};

}  // namespace
}  // namespace edgekd::engine

extern "C" edgekd::engine::Writer* edgekd_open_writer(const edgekd::engine::Job& job, int64_t context) {
  return new edgekd::engine::ExecuTorchWriter(job, context);
}
