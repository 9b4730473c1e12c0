#include "engine.hpp"

#include <algorithm>
#include <type_traits>

namespace edgekd::engine {

namespace {

[[noreturn]] void refuse(const std::string& message) { throw RunnerError("job", message); }

}  // namespace

const Input* declared(const std::vector<Input>& signature, const std::string& name) {
  for (const auto& input : signature) {
    if (input.name == name) return &input;
  }
  return nullptr;
}

Row padded(const Job& job, Row row) {
  std::vector<std::pair<std::string, Values>*> loose;  // an input whose shape the job gives is whole already
  int64_t longest = 0;
  for (auto& one : row.inputs) {
    const Input* input = declared(job.signature, one.first);
    if (input != nullptr && !input->shape.empty()) continue;
    if (one.second.shape.size() != 2) return row;
    longest = std::max(longest, one.second.shape[1]);
    loose.push_back(&one);
  }
  if (job.fixed_lengths.empty() || loose.empty()) return row;
  auto length = std::find_if(job.fixed_lengths.begin(), job.fixed_lengths.end(), [&](auto one) { return one >= longest; });
  if (length == job.fixed_lengths.end()) {
    refuse("a row is longer than the model's fixed length " + std::to_string(job.fixed_lengths.back()));
  }
  for (auto* one : loose) {
    const int64_t fill = one->first == "input_ids" ? job.pad_id : 0;
    Values& values = one->second;
    if (!values.whole.empty()) {
      values.whole.resize(*length, fill);
    } else {
      values.fractional.resize(*length, static_cast<double>(fill));
    }
    values.shape[1] = *length;
  }
  row.tokens = *length;
  return row;
}

Dtype dtype_of(const std::string& name) {
  if (name == "int64") return Dtype::int64;
  if (name == "int32") return Dtype::int32;
  if (name == "float32") return Dtype::float32;
  refuse("unknown dtype: " + name + " (known: float32, int32, int64)");
}

const char* name_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::int64: return "int64";
    case Dtype::int32: return "int32";
    case Dtype::float32: return "float32";
    case Dtype::int8: return "int8";
    case Dtype::uint8: return "uint8";
    case Dtype::other: break;
  }
  return "unknown";
}

std::size_t bytes_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::int64: return 8;
    case Dtype::int32:
    case Dtype::float32: return 4;
    default: return 1;
  }
}

std::size_t elements(const std::vector<int64_t>& shape) {
  std::size_t count = 1;
  for (const int64_t size : shape) count *= static_cast<std::size_t>(size);
  return count;
}

std::vector<std::byte> Values::as(Dtype dtype) const {
  std::vector<std::byte> bytes(elements(shape) * bytes_of(dtype));
  const auto fill = [&](auto* out) {
    using Number = std::remove_pointer_t<decltype(out)>;
    for (std::size_t i = 0; i < whole.size(); ++i) out[i] = static_cast<Number>(whole[i]);
    for (std::size_t i = 0; i < fractional.size(); ++i) out[i] = static_cast<Number>(fractional[i]);
  };
  switch (dtype) {
    case Dtype::int64: fill(reinterpret_cast<int64_t*>(bytes.data())); break;
    case Dtype::int32: fill(reinterpret_cast<int32_t*>(bytes.data())); break;
    case Dtype::float32: fill(reinterpret_cast<float*>(bytes.data())); break;
    case Dtype::int8: fill(reinterpret_cast<int8_t*>(bytes.data())); break;
    case Dtype::uint8: fill(reinterpret_cast<uint8_t*>(bytes.data())); break;
    case Dtype::other: throw RunnerError("failed", "the model has an input of a type that no job can give");
  }
  return bytes;
}

const Values& Row::at(const std::string& name) const {
  std::string names;
  for (const auto& [own, values] : inputs) {
    if (own == name) return values;
    names += (names.empty() ? "" : ", ") + own;
  }
  refuse("the model wants an input '" + name + "' that the rows do not have (" + names + ")");
}

json Model::profile(std::vector<std::unique_ptr<Prepared>>&, int) {
  throw RunnerError("unavailable", std::string("this runner has no profiler for ") + EDGEKD_RUNTIME);
}

}  // namespace edgekd::engine
