#include "writer.hpp"

extern "C" edgekd::engine::Writer* edgekd_open_writer(const edgekd::engine::Job&, int64_t) {
  throw edgekd::engine::RunnerError("unavailable", "ExecuTorch's package has its attention with a cache only for Python");
}
