// What opens an ONNX model and describes it, with the settings of the Python runner: for onnx.cc and write_onnx.cc.

#pragma once

#include <fstream>

#include "engine.hpp"
#include "onnx_api.hpp"

namespace edgekd::engine {

inline const OrtFunctions& ort() {
  static const OrtFunctions functions = [] {
    const void* const* table = OrtGetApiBase()->GetApi(kOrtApiVersion);
    if (table == nullptr) throw RunnerError("unavailable", "this ONNX Runtime is older than its API version 11");
    return OrtFunctions(table);
  }();
  return functions;
}

inline void check(OrtStatus* status) {
  if (status == nullptr) return;
  const std::string message = ort().GetErrorMessage(status);
  ort().ReleaseStatus(status);
  throw RunnerError("failed", message);
}

// Whether the default uint8 x int8 product overflows 16 bits here: an x86 processor without VNNI.
inline bool int8_products_saturate() {
#if defined(__x86_64__)
  std::ifstream file("/proc/cpuinfo");
  if (!file) return true;  // not known: rather slow than wrong
  for (std::string word; file >> word;) {
    if (word == "avx512_vnni" || word == "avx_vnni") return false;
  }
  return true;
#else
  return false;
#endif
}

inline Dtype dtype_of_element(int type) {
  switch (type) {
    case kOrtInt64: return Dtype::int64;
    case kOrtInt32: return Dtype::int32;
    case kOrtFloat: return Dtype::float32;
    case kOrtInt8: return Dtype::int8;
    case kOrtUint8: return Dtype::uint8;
    default: return Dtype::other;
  }
}

inline int element_of(Dtype dtype) {
  return dtype == Dtype::int64 ? kOrtInt64 : dtype == Dtype::int32 ? kOrtInt32 : kOrtFloat;
}

inline std::vector<int64_t> shape_of(const OrtTensorTypeAndShapeInfo* info) {
  std::size_t rank = 0;
  check(ort().GetDimensionsCount(info, &rank));
  std::vector<int64_t> shape(rank);
  check(ort().GetDimensions(info, shape.data(), rank));
  return shape;
}

inline const char* quant_precision() { return int8_products_saturate() ? "1" : "0"; }

inline OrtAllocator* allocator() {
  OrtAllocator* found = nullptr;
  check(ort().GetAllocatorWithDefaultOptions(&found));
  return found;
}

inline OrtSession* open_session(const OrtEnv* env, const Job& job, const char* profile_prefix = nullptr) {
  OrtSessionOptions* options = nullptr;
  check(ort().CreateSessionOptions(&options));
  check(ort().SetIntraOpNumThreads(options, job.threads));
  check(ort().SetInterOpNumThreads(options, 1));
  check(ort().SetSessionGraphOptimizationLevel(options, kOrtEnableAll));
  check(ort().SetSessionLogSeverityLevel(options, kOrtLogError));
  check(ort().AddSessionConfigEntry(options, "session.x64quantprecision", quant_precision()));
  if (profile_prefix != nullptr) check(ort().EnableProfiling(options, profile_prefix));
  OrtSession* session = nullptr;
  OrtStatus* status = ort().CreateSession(env, job.model.c_str(), options, &session);
  ort().ReleaseSessionOptions(options);
  check(status);
  return session;
}

inline std::string taken(char* name) {
  std::string text = name;
  check(ort().AllocatorFree(allocator(), name));
  return text;
}

inline Input described(char* name, OrtTypeInfo* type) {
  Input found{taken(name), Dtype::other, {}};
  const OrtTensorTypeAndShapeInfo* info = nullptr;
  check(ort().CastTypeInfoToTensorInfo(type, &info));
  if (info != nullptr) {
    int element = 0;
    check(ort().GetTensorElementType(info, &element));
    found.dtype = dtype_of_element(element);
    found.shape = shape_of(info);
  }
  ort().ReleaseTypeInfo(type);
  return found;
}

inline Input input_of(const OrtSession* session, std::size_t index) {
  char* name = nullptr;
  OrtTypeInfo* type = nullptr;
  check(ort().SessionGetInputName(session, index, allocator(), &name));
  check(ort().SessionGetInputTypeInfo(session, index, &type));
  return described(name, type);
}

inline Input output_of(const OrtSession* session, std::size_t index) {
  char* name = nullptr;
  OrtTypeInfo* type = nullptr;
  check(ort().SessionGetOutputName(session, index, allocator(), &name));
  check(ort().SessionGetOutputTypeInfo(session, index, &type));
  return described(name, type);
}

}  // namespace edgekd::engine
