// What compiles a LiteRT model for the processor and makes its buffers: for litert.cc and write_litert.cc.

#pragma once

#include <algorithm>
#include <cstring>

#include "engine.hpp"
#include "litert_api.hpp"

namespace edgekd::engine {

inline void check(LiteRtStatus status, const char* what) {
  if (status == 0) return;
  throw RunnerError("failed", std::string(what) + " gave LiteRT's status " + std::to_string(status));
}

#define LITERT(call) check((call), #call)

inline Dtype dtype_of_element(int type) {
  switch (type) {
    case kLiteRtInt64: return Dtype::int64;
    case kLiteRtInt32: return Dtype::int32;
    case kLiteRtFloat32: return Dtype::float32;
    case kLiteRtInt8: return Dtype::int8;
    case kLiteRtUInt8: return Dtype::uint8;
    default: return Dtype::other;
  }
}

// A tensor of the file: what the wire says of it, and what LiteRT wants to have said.
struct Tensor {
  explicit Tensor(LiteRtTensor handle) {
    const char* text = nullptr;
    LITERT(LiteRtGetTensorName(handle, &text));
    LITERT(LiteRtGetTensorIndex(handle, &index));
    LITERT(LiteRtGetRankedTensorType(handle, &type));
    input = {text, dtype_of_element(type.element_type), {}};
    for (unsigned i = 0; i < type.layout.rank; ++i) input.shape.push_back(std::max(-1, type.layout.dimensions[i]));
    int kind = 0;
    LITERT(LiteRtGetQuantizationTypeId(handle, &kind));
    if (kind == kLiteRtQuantizationPerTensor) LITERT(LiteRtGetPerTensorQuantization(handle, &quantization));
  }

  Input input;
  uint32_t index = 0;
  LiteRtRankedTensorType type{};
  LiteRtQuantizationPerTensor quantization{0, 0};
};

inline void add(LiteRtOptions options, const char* identifier, const std::string& toml) {
  char* text = new char[toml.size() + 1];
  std::memcpy(text, toml.c_str(), toml.size() + 1);
  LiteRtOpaqueOptions opaque = nullptr;
  LITERT(LiteRtCreateOpaqueOptions(identifier, text, [](void* one) { delete[] static_cast<char*>(one); }, &opaque));
  LITERT(LiteRtAddOpaqueOptions(options, opaque));
}

inline LiteRtCompiledModel compiled(LiteRtEnvironment environment, LiteRtModel model, int threads, bool profiling) {
  LiteRtOptions options = nullptr;
  LITERT(LiteRtCreateOptions(&options));
  LITERT(LiteRtSetOptionsHardwareAccelerators(options, kLiteRtHwAcceleratorCpu));
  add(options, "xnnpack", "num_threads = " + std::to_string(threads) + "\n");
  if (profiling) add(options, "runtime_options_string", "enable_profiling = true\n");
  LiteRtCompiledModel made = nullptr;
  const LiteRtStatus status = LiteRtCreateCompiledModel(environment, model, options, &made);
  LiteRtDestroyOptions(options);
  check(status, "LiteRtCreateCompiledModel");
  return made;
}

inline LiteRtTensorBuffer buffer(LiteRtEnvironment environment, const Tensor& tensor, LiteRtTensorBufferRequirements wanted) {
  if (std::count(tensor.input.shape.begin(), tensor.input.shape.end(), -1) > 0) {
    throw RunnerError("failed", "tensor '" + tensor.input.name + "' has a dynamic axis, which this runner does not run");
  }
  LiteRtTensorBuffer made = nullptr;
  LITERT(LiteRtCreateManagedTensorBufferFromRequirements(environment, &tensor.type, wanted, &made));
  return made;
}

}  // namespace edgekd::engine
