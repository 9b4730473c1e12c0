// What the machine and its kernel tell of time, memory, energy and processors.

#pragma once

#include <chrono>
#include <map>
#include <optional>

#include "engine.hpp"

namespace edgekd::engine {

inline int64_t clock_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

int64_t process_ns();

// Processor time of all processes (and time stolen by other guests) since boot, proc(5).
std::optional<int64_t> machine_busy_ns();

// Resets VmHWM to the present resident size: proc(5), writing 5 to clear_refs.
bool reset_peak();

// Bytes of VmRSS, VmHWM, RssAnon and RssFile.
std::map<std::string, int64_t> memory();
json above(const std::map<std::string, int64_t>& before, const std::map<std::string, int64_t>& after, bool reset);

// A reading: of RAPL's counters in microjoules with the value each wraps at, or of a battery's power in watts.
struct Energy {
  std::string source;
  std::map<std::string, std::pair<int64_t, int64_t>> counters;
  double watts = 0;
};

// RAPL's packages (readable by root on most kernels), or a battery that discharges, or nothing.
std::optional<Energy> energy();

// Microjoules between two readings; of a battery, the mean of the two powers times the time.
json spent(const std::optional<Energy>& before, const std::optional<Energy>& after, int64_t wall_ns);

void stay_on(const std::vector<int>& processors);
json affinity();

}  // namespace edgekd::engine
