// What opens and runs a model, for the runner (core.cc) and for an app's library (linux/app/cpp): onnx.cc, litert.cc and
// executorch.cc are one runtime each behind these classes.

#pragma once

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

namespace edgekd::engine {

using nlohmann::json;

// An error the caller is told about. `kind`: job, unavailable or failed.
struct RunnerError : std::runtime_error {
  RunnerError(std::string kind_, const std::string& message) : std::runtime_error(message), kind(std::move(kind_)) {}
  std::string kind;
};

enum class Dtype { int64, int32, float32, int8, uint8, other };

Dtype dtype_of(const std::string& name);   // raises RunnerError for one that no job can give
const char* name_of(Dtype dtype);
std::size_t bytes_of(Dtype dtype);

// An input as the job declares it, or as a file has it (`shape`: -1 for a dynamic axis).
struct Input {
  std::string name;
  Dtype dtype;
  std::vector<int64_t> shape;  // of a job: empty where its values are nested lists
};

// The values of one input of one row, row-major, with the batch dimension.
struct Values {
  std::vector<int64_t> shape;
  std::vector<int64_t> whole;    // one of the two is filled
  std::vector<double> fractional;

  // The values as the runtime wants them; whole numbers are cast as numpy casts them.
  std::vector<std::byte> as(Dtype dtype) const;
};

// One row, padded.
struct Row {
  std::vector<std::pair<std::string, Values>> inputs;
  int64_t tokens = 1;  // its length; 1 for an image

  const Values& at(const std::string& name) const;  // raises RunnerError of kind job where it is absent
};

// What is to be opened, and how.
struct Job {
  std::string phase, runtime, model;
  int threads = 1;
  std::vector<Input> signature;
  std::vector<int64_t> fixed_lengths;
  int64_t pad_id = 0;
};

// The input of this name; null where the signature has none.
const Input* declared(const std::vector<Input>& signature, const std::string& name);

// The row at the shortest fixed length that holds it (mask 0, pad id) or, where there is none, as it is.
Row padded(const Job& job, Row row);

// The first output of an inference, as float32 numbers.
struct Output {
  std::vector<int64_t> shape;
  std::vector<float> values;
};

// Inputs as a runtime takes them, made before the clock runs.
struct Prepared {
  virtual ~Prepared() = default;
};

class Model {
 public:
  virtual ~Model() = default;
  virtual std::vector<Input> describe() = 0;
  virtual std::unique_ptr<Prepared> prepare(const Row& row) = 0;
  virtual void call(Prepared& inputs) = 0;  // what is timed
  virtual Output output() = 0;              // of the last call
  virtual json observed() = 0;              // backend, threads, and what else the runtime tells
  virtual json profile(std::vector<std::unique_ptr<Prepared>>& inputs, int runs);  // operators; unavailable by default
};

class Runtime {
 public:
  virtual ~Runtime() = default;
  virtual const char* name() = 0;
  virtual json versions() = 0;
  virtual std::unique_ptr<Model> load(const Job& job) = 0;
};

// Dequantizes as the Python runner does: float32(value) - zero point, times the scale, each rounded to float32.
template <typename Integer>
std::vector<float> dequantized(const Integer* values, std::size_t count, float scale, int64_t zero_point) {
  std::vector<float> found(count);
  for (std::size_t i = 0; i < count; ++i) {
    found[i] = (static_cast<float>(values[i]) - static_cast<float>(zero_point)) * scale;
  }
  return found;
}

std::size_t elements(const std::vector<int64_t>& shape);

}  // namespace edgekd::engine

// Every runtime has this one entry.
extern "C" edgekd::engine::Runtime* edgekd_open_runtime();
