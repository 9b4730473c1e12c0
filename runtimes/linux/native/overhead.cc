// Not a runtime: a model that does nothing, so that what the timed loop adds to an inference can be measured. The request
// `profile` answers the same from a bare loop around the same nothing. benchmarks/harness.py compiles it.

#include <chrono>

#include "engine.hpp"

namespace edgekd::engine {
namespace {

struct Nothing : Prepared {};

class Idle : public Model {
 public:
  std::vector<Input> describe() override { return {}; }
  std::unique_ptr<Prepared> prepare(const Row&) override { return std::make_unique<Nothing>(); }
  void call(Prepared&) override { asm volatile("" ::: "memory"); }
  Output output() override { return {{1, 1}, {0}}; }
  json observed() override { return {{"threads", 1}, {"backend", "none"}}; }

  json profile(std::vector<std::unique_ptr<Prepared>>&, int runs) override {
    const auto began = std::chrono::steady_clock::now();
    for (int number = 0; number < runs; ++number) asm volatile("" ::: "memory");
    const std::chrono::duration<double, std::nano> taken = std::chrono::steady_clock::now() - began;
    return {{{"name", "bare loop"}, {"type", "loop"}, {"ns", taken.count() / runs}, {"calls", 1}}};
  }
};

class NoRuntime : public Runtime {
 public:
  const char* name() override { return EDGEKD_RUNTIME; }
  json versions() override { return json::object(); }
  std::unique_ptr<Model> load(const Job&) override { return std::make_unique<Idle>(); }
};

}  // namespace
}  // namespace edgekd::engine

extern "C" edgekd::engine::Runtime* edgekd_open_runtime() { return new edgekd::engine::NoRuntime; }
