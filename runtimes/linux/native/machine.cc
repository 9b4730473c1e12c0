#include "machine.hpp"

#include <dirent.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <fstream>
#include <sstream>

namespace edgekd::engine {

namespace {

std::string text_of(const std::string& path) {
  std::ifstream file(path);
  std::stringstream content;
  content << file.rdbuf();
  std::string text = file ? content.str() : "";
  while (!text.empty() && std::isspace(static_cast<unsigned char>(text.back()))) text.pop_back();
  return text;
}

std::optional<int64_t> number_of(const std::string& path) {
  const std::string text = text_of(path);
  char* end = nullptr;
  const int64_t value = std::strtoll(text.c_str(), &end, 10);
  if (text.empty() || *end != '\0') return std::nullopt;
  return value;
}

std::vector<std::string> folders_in(const std::string& path) {
  std::vector<std::string> found;
  if (DIR* folder = opendir(path.c_str())) {
    while (const dirent* entry = readdir(folder)) {
      if (entry->d_name[0] != '.') found.push_back(path + "/" + entry->d_name);
    }
    closedir(folder);
  }
  std::sort(found.begin(), found.end());
  return found;
}

}  // namespace

int64_t process_ns() {
  timespec now{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<int64_t>(now.tv_sec) * 1'000'000'000 + now.tv_nsec;
}

std::optional<int64_t> machine_busy_ns() {
  std::ifstream file("/proc/stat");
  std::string label;
  int64_t user, nice, system, idle, iowait, irq, softirq, steal;
  if (!(file >> label >> user >> nice >> system >> idle >> iowait >> irq >> softirq >> steal)) return std::nullopt;
  return (user + nice + system + irq + softirq + steal) * (1'000'000'000 / sysconf(_SC_CLK_TCK));
}

bool reset_peak() {
  std::ofstream file("/proc/self/clear_refs");
  return static_cast<bool>(file << "5" << std::flush);
}

std::map<std::string, int64_t> memory() {
  std::map<std::string, int64_t> found;
  std::ifstream file("/proc/self/status");
  for (std::string line; std::getline(file, line);) {
    const auto colon = line.find(':');
    if (colon == std::string::npos) continue;
    const std::string name = line.substr(0, colon);
    if (name == "VmRSS" || name == "VmHWM" || name == "RssAnon" || name == "RssFile") {
      found[name] = std::strtoll(line.c_str() + colon + 1, nullptr, 10) * 1024;
    }
  }
  if (!found.count("VmRSS") || !found.count("VmHWM")) {
    throw RunnerError("failed", "the kernel does not tell the resident memory (/proc/self/status)");
  }
  return found;
}

json above(const std::map<std::string, int64_t>& before, const std::map<std::string, int64_t>& after, bool reset) {
  const int64_t baseline = before.at("VmRSS");
  json found{{"baseline_bytes", baseline},
             {"peak_bytes", after.at("VmHWM")},
             {"peak_above_bytes", std::max<int64_t>(0, after.at("VmHWM") - baseline)},
             {"peak_reset", reset}};
  for (const auto& [name, key] : {std::pair{"RssAnon", "anonymous_above_bytes"}, {"RssFile", "file_above_bytes"}}) {
    if (after.count(name) && before.count(name)) found[key] = after.at(name) - before.at(name);
  }
  return found;
}

std::optional<Energy> energy() {
  const char* given = std::getenv("EDGEKD_SYSFS");  // a test gives another folder
  const std::string sysfs = given != nullptr ? given : "/sys";
  Energy found;
  for (const auto& zone : folders_in(sysfs + "/class/powercap")) {
    if (text_of(zone + "/name").rfind("package", 0) != 0) continue;  // its parts are counted in it
    const auto value = number_of(zone + "/energy_uj"), wraps = number_of(zone + "/max_energy_range_uj");
    if (value && wraps) found.counters[zone] = {*value, *wraps};
  }
  if (!found.counters.empty()) {
    found.source = "rapl";
    return found;
  }
  for (const auto& battery : folders_in(sysfs + "/class/power_supply")) {
    if (text_of(battery + "/status") != "Discharging") continue;
    const auto microamperes = number_of(battery + "/current_now"), microvolts = number_of(battery + "/voltage_now");
    if (!microamperes || !microvolts) continue;
    found.source = "battery";
    found.watts = std::abs(static_cast<double>(*microamperes)) * static_cast<double>(*microvolts) / 1e12;
    return found;
  }
  return std::nullopt;
}

json spent(const std::optional<Energy>& before, const std::optional<Energy>& after, int64_t wall_ns) {
  if (!before || !after || before->source != after->source || before->counters.size() != after->counters.size()) {
    return nullptr;
  }
  if (before->source == "battery") {
    const double uj = (before->watts + after->watts) / 2 * static_cast<double>(wall_ns) / 1e3;
    return {{"source", "battery"}, {"uj", std::llround(uj)}};
  }
  int64_t uj = 0;
  for (const auto& [name, reading] : after->counters) {
    const auto start = before->counters.find(name);
    if (start == before->counters.end()) return nullptr;
    const int64_t difference = reading.first - start->second.first;
    uj += difference >= 0 ? difference : difference + reading.second;
  }
  return {{"source", "rapl"}, {"uj", uj}};
}

void stay_on(const std::vector<int>& processors) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (const int one : processors) {
    if (one >= CPU_SETSIZE) throw RunnerError("job", "cpu_affinity: there is no processor " + std::to_string(one));
    CPU_SET(one, &set);
  }
  if (sched_setaffinity(0, sizeof set, &set) != 0) {
    throw RunnerError("failed", std::string("cpu_affinity: ") + std::strerror(errno));
  }
}

json affinity() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) != 0) return nullptr;
  json found = json::array();
  for (int one = 0; one < CPU_SETSIZE; ++one) {
    if (CPU_ISSET(one, &set)) found.push_back(one);
  }
  return found;
}

}  // namespace edgekd::engine
