// What opens a program of ExecuTorch: for executorch.cc and write_executorch.cc.

#pragma once

#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>

#include <fstream>
#include <iterator>

#include "engine.hpp"

// The package has this class in libexecutorch_threadpool.so, and no header of it. Only functions are called, on an object
// that the library makes.
namespace executorch::extension::threadpool {
class ThreadPool {
 public:
  bool _unsafe_reset_threadpool(uint32_t threads);
  std::size_t get_thread_count() const;
};
ThreadPool* get_threadpool();
}  // namespace executorch::extension::threadpool

namespace edgekd::engine {

using executorch::aten::ScalarType;
using executorch::extension::Module;
using executorch::extension::TensorPtr;
using executorch::extension::threadpool::get_threadpool;
using executorch::runtime::Error;
using executorch::runtime::EValue;

inline void check(Error error, const std::string& what) {
  if (error == Error::Ok) return;
  throw RunnerError("failed", what + " gave ExecuTorch's error " + std::to_string(static_cast<int>(error)));
}

// The delegates a .pte names; the file holds their ids as plain text.
inline std::string backends(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string content{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  std::string found;
  for (const char* name :
       {"XnnpackBackend", "QnnBackend", "VulkanBackend", "CoreMLBackend", "OpenvinoBackend", "VgfBackend"}) {
    if (content.find(name) != std::string::npos) found += (found.empty() ? "" : ", ") + std::string(name);
  }
  return found.empty() ? "portable kernels" : found;
}

inline void set_threads(int count) {
  if (!get_threadpool()->_unsafe_reset_threadpool(static_cast<uint32_t>(count))) {
    throw RunnerError("failed", "ExecuTorch's thread pool cannot be set to " + std::to_string(count));
  }
}

}  // namespace edgekd::engine
