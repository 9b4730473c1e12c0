// The runner: the wire, the phases and the timed loops.
//
// `runner` is this file, engine.cc and machine.cc. It opens `runtime.so`, which lies beside it and is one of onnx.cc,
// litert.cc and executorch.cc (and of the files write_*.cc) with the vendor's libraries: so opening a runtime can be timed,
// and a runtime that cannot be opened is an answer. The wire is described in runtimes/README.md; the behaviour is that of linux/python/edgekd_runner.py.
#include "engine.hpp"
#include "machine.hpp"
#include "writer.hpp"

#include <dlfcn.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <iostream>
#include <map>
#include <optional>
#include <set>

namespace edgekd::engine {

namespace {

constexpr const char* kSchema = "edgekd/runner/1";
constexpr const char* kVersion = "1";

[[noreturn]] void refuse(const std::string& message) { throw RunnerError("job", message); }

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const auto& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

// --- the job ---

// A job of the wire: what is to be opened, and what is asked of it.
struct Asked : Job {
  std::vector<int> cpu_affinity;  // empty: any
  int runs = 20;
  int context = 1024;
  json rows;
};

bool is_whole(const json& value, std::optional<int64_t> least = std::nullopt) {
  if (!value.is_number_integer()) return false;
  if (value.is_number_unsigned() && value.get<uint64_t>() > INT64_MAX) return false;
  return !least || value.get<int64_t>() >= *least;
}

bool is_whole_list(const json& values, int64_t least) {
  return values.is_array() && std::all_of(values.begin(), values.end(), [&](auto& one) { return is_whole(one, least); });
}

void check_fields(const json& document, const std::set<std::string>& required, const std::set<std::string>& optional) {
  std::vector<std::string> missing, unknown;
  for (const auto& name : required) {
    if (!document.contains(name)) missing.push_back(name);
  }
  for (const auto& [name, value] : document.items()) {
    if (!required.count(name) && !optional.count(name)) unknown.push_back(name);
  }
  if (!missing.empty()) refuse("missing: " + joined(missing));
  if (!unknown.empty()) refuse("unknown: " + joined(unknown));
}

int positive(const json& document, const char* name) {
  const json& value = document.at(name);
  if (!is_whole(value, 1) || value.get<int64_t>() > INT32_MAX) {
    refuse(std::string(name) + " is not a positive whole number: " + value.dump());
  }
  return value.get<int>();
}

std::vector<Input> signature_of(const json& signature) {
  bool good = signature.is_array() && !signature.empty() &&
              std::all_of(signature.begin(), signature.end(), [](auto& one) { return one.is_object(); });
  if (!good) refuse("signature is not a list of {name, dtype, shape?}");
  std::vector<Input> inputs;
  for (const auto& one : signature) {
    check_fields(one, {"name", "dtype"}, {"shape"});
    if (!one["name"].is_string()) refuse("a name of the signature is not a text: " + one["name"].dump());
    Input input{one["name"], dtype_of(one["dtype"].is_string() ? one["dtype"].get<std::string>() : one["dtype"].dump()), {}};
    if (one.contains("shape")) {
      if (one["shape"].empty() || !is_whole_list(one["shape"], 1)) {
        refuse("the shape of '" + input.name + "' is not a list of positive whole numbers");
      }
      input.shape = one["shape"].get<std::vector<int64_t>>();
    }
    inputs.push_back(std::move(input));
  }
  return inputs;
}

// Appends the numbers of nested lists and fills in their lengths; refuses ragged ones and what is no number.
void flatten(const std::string& name, const json& values, bool whole, std::size_t depth, Values& into) {
  if (into.shape.size() == depth) into.shape.push_back(static_cast<int64_t>(values.size()));
  if (into.shape[depth] != static_cast<int64_t>(values.size())) refuse("the nested lists of '" + name + "' differ in length");
  const bool nested = values[0].is_array();
  if (!nested && into.shape.size() != depth + 1) refuse("the nested lists of '" + name + "' differ in length");
  for (const auto& one : values) {
    if (nested) {
      if (!one.is_array() || one.empty()) refuse("the nested lists of '" + name + "' differ in length");
      flatten(name, one, whole, depth + 1, into);
    } else if (whole) {
      if (!is_whole(one)) refuse("a value of '" + name + "' is not a whole number");
      into.whole.push_back(one.get<int64_t>());
    } else {
      if (!one.is_number()) refuse("a value of '" + name + "' is not a number");
      into.fractional.push_back(one.get<double>());
    }
  }
}

// The rows as they are, without the padding; raises RunnerError for what is none.
std::vector<Row> read_rows(const json& rows, const Job& job) {
  const char* what = "rows is not a list of {input name: list of token ids, or of an image's channels}";
  if (!rows.is_array() || rows.empty()) refuse(what);
  std::vector<Row> found;
  for (const auto& one : rows) {
    if (!one.is_object() || one.empty()) refuse(what);
    Row row;
    std::optional<int64_t> loose, given;  // a length from an input without a shape goes first
    for (const auto& [name, values] : one.items()) {
      if (!values.is_array() || values.empty()) refuse(what);
      const Input* input = declared(job.signature, name);
      Values read;
      flatten(name, values, input != nullptr && input->dtype != Dtype::float32, 0, read);
      if (input != nullptr && !input->shape.empty()) {
        if (read.shape.size() != 1 || elements(input->shape) != elements(read.shape)) {
          refuse("'" + name + "' is not one flat list of the values of shape " + json(input->shape).dump());
        }
        read.shape = input->shape;
        if (read.shape.size() == 2 && !given) given = read.shape[1];
      } else {
        read.shape.insert(read.shape.begin(), 1);
        if (read.shape.size() == 2 && !loose) loose = read.shape[1];
      }
      row.inputs.emplace_back(name, std::move(read));
    }
    row.tokens = loose ? *loose : given ? *given : 1;
    found.push_back(std::move(row));
  }
  return found;
}

Asked checked(const json& job, const std::string& runtime) {
  if (!job.is_object() || job.value("schema", json()) != json(kSchema)) refuse(std::string("not a job of schema ") + kSchema);
  const json phase = job.value("phase", json());
  const bool writes = phase == json("write"), takes_rows = !writes && phase != json("describe");
  std::set<std::string> required{"schema", "phase", "runtime", "model", "threads"};
  if (takes_rows) required.insert("rows");
  const std::set<std::string> others{"signature", "fixed_lengths", "pad_id", "cpu_affinity", "runs"};
  check_fields(job, required, writes ? std::set<std::string>{"cpu_affinity", "context"} : others);
  Asked found;
  const std::vector<std::string> phases{"describe", "load", "memory", "outputs", "time", "write"};
  if (std::find(phases.begin(), phases.end(), job["phase"]) == phases.end()) {
    refuse("unknown phase " + job["phase"].dump() + " (known: " + joined(phases) + ")");
  }
  found.phase = job["phase"];
  if (job["runtime"] != json(runtime)) {
    const std::string asked = job["runtime"].is_string() ? job["runtime"].get<std::string>() : job["runtime"].dump();
    throw RunnerError("unavailable", "no runtime '" + asked + "' here (known: " + runtime + ")");
  }
  found.runtime = job["runtime"];
  if (!job["model"].is_string() || job["model"].get_ref<const std::string&>().empty()) {
    refuse("model is not the name of a file: " + job["model"].dump());
  }
  found.model = job["model"];
  found.threads = positive(job, "threads");
  if (job.contains("runs")) found.runs = positive(job, "runs");
  if (job.contains("context")) found.context = positive(job, "context");
  if (job.contains("pad_id")) {
    if (!is_whole(job["pad_id"])) refuse("pad_id is not a whole number: " + job["pad_id"].dump());
    found.pad_id = job["pad_id"];
  }
  if (job.contains("fixed_lengths")) {
    const json& lengths = job["fixed_lengths"];
    bool good = is_whole_list(lengths, 1);
    if (good) {
      found.fixed_lengths = lengths.get<std::vector<int64_t>>();
      good = std::is_sorted(found.fixed_lengths.begin(), found.fixed_lengths.end(), std::less_equal<>());
    }
    if (!good) refuse("fixed_lengths is not a list of ascending positive whole numbers: " + lengths.dump());
  }
  if (job.contains("cpu_affinity") && !job["cpu_affinity"].is_null()) {
    const json& processors = job["cpu_affinity"];
    if (processors.empty() || !is_whole_list(processors, 0)) {
      refuse("cpu_affinity is neither null nor a list of processors: " + processors.dump());
    }
    found.cpu_affinity = processors.get<std::vector<int>>();
  }
  found.signature = job.contains("signature")
                        ? signature_of(job["signature"])
                        : std::vector<Input>{{"input_ids", Dtype::int64, {}}, {"attention_mask", Dtype::int64, {}}};
  if (takes_rows) {
    found.rows = job["rows"];
    read_rows(found.rows, found);
  }
  return found;
}

// --- phases ---

struct Batch {
  std::vector<std::unique_ptr<Prepared>> inputs;
  std::vector<int64_t> lengths;  // as fed
  std::vector<int64_t> sizes;    // as given

  json tokens() const { return std::set<int64_t>(lengths.begin(), lengths.end()); }
};

Batch prepared(const Job& job, Model& model, const json& rows) {
  Batch batch;
  for (auto& row : read_rows(rows, job)) {
    batch.sizes.push_back(row.tokens);
    const Row fed = padded(job, std::move(row));
    batch.lengths.push_back(fed.tokens);
    batch.inputs.push_back(model.prepare(fed));
  }
  return batch;
}

// Row-major values as nested lists.
json nested(const Output& output, std::size_t axis, std::size_t& at) {
  if (axis == output.shape.size()) {
    const double value = output.values.at(at++);
    if (!std::isfinite(value)) throw RunnerError("failed", "the model's output has a number that is not finite");
    return value;
  }
  json found = json::array();
  for (int64_t i = 0; i < output.shape[axis]; ++i) found.push_back(nested(output, axis + 1, at));
  return found;
}

// Logits of every row; where a padded row has one set per token, those of the padding are cut off.
json answers(const Job& job, Model& model, const json& rows) {
  Batch batch = prepared(job, model, rows);
  json found = json::array();
  for (std::size_t i = 0; i < batch.inputs.size(); ++i) {
    model.call(*batch.inputs[i]);
    Output output = model.output();
    if (output.shape.empty()) throw RunnerError("failed", "the model's output has no batch dimension");
    std::size_t at = 0;
    json logits = nested(output, 1, at);
    if (batch.sizes[i] < batch.lengths[i] && logits.is_array() && !logits.empty() && logits[0].is_array() &&
        static_cast<int64_t>(logits.size()) > batch.sizes[i]) {
      logits.erase(logits.begin() + batch.sizes[i], logits.end());
    }
    found.push_back(std::move(logits));
  }
  return found;
}

json block(Model& model, Batch& batch, const json& request) {
  const auto nanoseconds = [&](const char* name) { return request[name].get<double>() * 1e9; };
  const double warmup_runs = request["warmup_runs"], min_runs = request["min_runs"];
  const double warmup = nanoseconds("warmup_seconds"), needed = nanoseconds("min_seconds"), limit = nanoseconds("max_seconds");
  const std::size_t count = batch.inputs.size();
  const int64_t began = clock_ns();
  std::size_t warm = 0;
  while (static_cast<double>(warm) < warmup_runs || static_cast<double>(clock_ns() - began) < warmup) {
    model.call(*batch.inputs[warm % count]);
    ++warm;
    if (static_cast<double>(clock_ns() - began) > limit) break;
  }
  std::vector<int64_t> samples;
  samples.reserve(static_cast<std::size_t>(std::min(std::max(min_runs, 4096.0), 1e6)));
  const auto before_energy = energy();
  const auto busy = machine_busy_ns();
  const int64_t cpu = process_ns(), start = clock_ns();
  std::size_t next = 0;
  while (true) {
    Prepared& one = *batch.inputs[next];
    if (++next == count) next = 0;
    const int64_t before = clock_ns();
    model.call(one);
    const int64_t after = clock_ns();
    samples.push_back(after - before);
    const auto elapsed = static_cast<double>(after - start);
    if ((static_cast<double>(samples.size()) >= min_runs && elapsed >= needed) || elapsed > limit) break;
  }
  const int64_t wall = clock_ns() - start, used = process_ns() - cpu;
  const auto busy_after = machine_busy_ns();
  const auto after_energy = energy();
  return {{"answer", "block"},
          {"tokens", batch.tokens()},
          {"samples_ns", samples},
          {"warmup", {{"runs", warm}, {"seconds", static_cast<double>(start - began) / 1e9}}},
          {"wall_ns", wall},
          {"cpu_ns", used},
          {"machine_busy_ns", busy && busy_after ? json(*busy_after - *busy) : json(nullptr)},
          {"cpus", sysconf(_SC_NPROCESSORS_ONLN)},
          {"energy", spent(before_energy, after_energy, wall)}};
}

json asked_of(const json& request) {
  if (!request.is_object() || request.value("schema", json()) != json(kSchema)) {
    refuse(std::string("not a request of schema ") + kSchema);
  }
  return request.value("request", json());
}

json answer_request(const Job& job, Model& model, const json& request) {
  const std::vector<std::string> numbers{"warmup_runs", "warmup_seconds", "min_runs", "min_seconds", "max_seconds"};
  const json asked = asked_of(request);
  std::set<std::string> fields{"schema", "request", "rows"};
  if (asked == json("block")) {
    fields.insert(numbers.begin(), numbers.end());
  } else if (asked == json("profile")) {
    fields.insert("runs");
  } else if (asked != json("outputs")) {
    refuse("unknown request " + asked.dump() + " (known: block, outputs, profile)");
  }
  check_fields(request, fields, {});
  if (asked == json("outputs")) return {{"answer", "outputs"}, {"logits", answers(job, model, request["rows"])}};
  if (asked == json("profile")) {
    const int runs = positive(request, "runs");
    Batch batch = prepared(job, model, request["rows"]);
    return {{"answer", "profile"}, {"operators", model.profile(batch.inputs, runs)}};
  }
  for (const auto& name : numbers) {
    if (!request[name].is_number() || request[name].get<double>() < 0) {
      refuse("a block needs the numbers " + joined(numbers) + ", none negative");
    }
  }
  Batch batch = prepared(job, model, request["rows"]);
  return block(model, batch, request);
}

// --- writing ---

// The memory before a student was opened, and whether its peak was reset then.
struct Baseline {
  bool reset = reset_peak();
  std::map<std::string, int64_t> memory = engine::memory();
};

std::unique_ptr<Writer> open_writer(const Asked& job) {
  auto* entry = reinterpret_cast<decltype(&edgekd_open_writer)>(dlsym(RTLD_DEFAULT, "edgekd_open_writer"));
  if (entry == nullptr) throw RunnerError("unavailable", "this runner writes no text with " + job.runtime);
  return std::unique_ptr<Writer>(entry(job, job.context));
}

// The prompt of a request; refuses one that does not fit with `count` more tokens, and ids that the student has not.
std::vector<int64_t> prompt_of(const Writer& writer, const json& request, int64_t count) {
  const json& given = request["ids"];
  if (!is_whole_list(given, 0) || given.empty()) refuse("ids is not a list of token ids");
  auto ids = given.get<std::vector<int64_t>>();
  const int64_t most = *std::max_element(ids.begin(), ids.end()), all = static_cast<int64_t>(ids.size()) + count;
  if (most >= writer.vocabulary) {
    refuse("there is no token " + std::to_string(most) + "; the model has " + std::to_string(writer.vocabulary));
  }
  if (all > writer.context) {
    refuse(std::to_string(all) + " tokens; the model's cache holds " + std::to_string(writer.context));
  }
  return ids;
}

json answer_writing(Writer& writer, const json& request, const Baseline& baseline) {
  const json asked = asked_of(request);
  const bool writes = asked == json("write");
  if (asked == json("memory")) {
    check_fields(request, {"schema", "request"}, {});
    return {{"answer", "memory"}, {"memory", above(baseline.memory, memory(), baseline.reset)}};
  }
  if (!writes && asked != json("read")) refuse("unknown request " + asked.dump() + " (known: read, write, memory)");
  std::set<std::string> fields{"schema", "request", "ids"};
  if (writes) fields.insert("count");
  check_fields(request, fields, {});
  const int count = writes ? positive(request, "count") : 0;
  const std::vector<int64_t> ids = prompt_of(writer, request, count);
  std::vector<int64_t> samples, tokens;
  samples.reserve(count);
  tokens.reserve(count);
  writer.reset();
  const auto busy = machine_busy_ns();
  const int64_t cpu = process_ns(), start = clock_ns();
  int64_t next = writer.feed(ids.data(), static_cast<int64_t>(ids.size()));
  const int64_t first = clock_ns() - start;
  for (int number = 0; number < count; ++number) {
    tokens.push_back(next);
    const int64_t before = clock_ns();
    next = writer.feed(&tokens.back(), 1);
    samples.push_back(clock_ns() - before);
  }
  const int64_t wall = clock_ns() - start, used = process_ns() - cpu;
  const auto busy_after = machine_busy_ns();
  json answer{{"answer", asked},
              {"wall_ns", wall},
              {"cpu_ns", used},
              {"machine_busy_ns", busy && busy_after ? json(*busy_after - *busy) : json(nullptr)},
              {"cpus", sysconf(_SC_NPROCESSORS_ONLN)}};
  if (writes) {
    answer.update({{"first_ns", first}, {"samples_ns", samples}, {"tokens", tokens}});
  } else {
    answer.update({{"samples_ns", {first}}, {"token", next}});
  }
  return answer;
}

// --- the wire ---

class Wire {
 public:
  // Vendors print to stdout; only documents may go there: what was stdout is kept, and stdout becomes stderr.
  Wire() : file_(fdopen(dup(STDOUT_FILENO), "w")) { dup2(STDERR_FILENO, STDOUT_FILENO); }

  void send(json document) {
    document["schema"] = kSchema;
    document["version"] = kVersion;
    const std::string text = document.dump(-1, ' ', false, json::error_handler_t::replace) + "\n";
    std::fwrite(text.data(), 1, text.size(), file_);
    std::fflush(file_);
  }

  int fail(const std::string& kind, const std::string& message) {
    std::string line;
    for (const char one : message) {  // one line, and no more of it than a reader wants
      const bool space = std::isspace(static_cast<unsigned char>(one));
      if (!space) {
        line += one;
      } else if (!line.empty() && line.back() != ' ') {
        line += ' ';
      }
    }
    send({{"error", {{"kind", kind}, {"message", line.substr(0, 500)}}}});
    return 1;
  }

 private:
  std::FILE* file_;
};

json parsed(const std::string& line) {
  try {
    return json::parse(line);
  } catch (const json::parse_error& error) {
    refuse(std::string("not one line of JSON (") + error.what() + ")");
  }
}

// The folder of this program, where its runtime.so lies.
std::string own_folder() {
  char path[4096];
  const ssize_t size = readlink("/proc/self/exe", path, sizeof path - 1);
  if (size <= 0) return ".";
  const std::string whole(path, static_cast<std::size_t>(size));
  return whole.substr(0, whole.rfind('/'));
}

Runtime& open_runtime() {
  const std::string path = own_folder() + "/runtime.so";
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL);
  if (library == nullptr) throw RunnerError("unavailable", std::string("the runtime cannot be opened: ") + dlerror());
  auto* entry = reinterpret_cast<decltype(&edgekd_open_runtime)>(dlsym(library, "edgekd_open_runtime"));
  Runtime* runtime = entry != nullptr ? entry() : nullptr;
  if (runtime == nullptr) throw RunnerError("unavailable", path + " is no runtime of this runner");
  return *runtime;
}

int serve(Wire& wire) {
  std::string line;
  std::getline(std::cin, line);
  const Asked job = checked(parsed(line), EDGEKD_RUNTIME);
  if (!job.cpu_affinity.empty()) stay_on(job.cpu_affinity);
  const int64_t began = clock_ns();
  Runtime& runtime = open_runtime();
  const int64_t imported = clock_ns();
  struct stat status {};
  if (stat(job.model.c_str(), &status) != 0 || !S_ISREG(status.st_mode)) refuse("no such model file: " + job.model);
  const Baseline baseline;
  json observed{
      {"runtime", job.runtime}, {"versions", runtime.versions()}, {"runner", "native"}, {"cpu_affinity", affinity()}};
  json answer{{"phase", job.phase}, {"import_ns", imported - began}};
  const int64_t start = clock_ns();
  if (job.phase == "write") {
    const std::unique_ptr<Writer> writer = open_writer(job);
    answer["load_ns"] = clock_ns() - start;
    observed["context"] = writer->context;
    observed.update(writer->observed());
    answer["observed"] = observed;
    wire.send(answer);
    while (std::getline(std::cin, line)) wire.send(answer_writing(*writer, parsed(line), baseline));
    return 0;
  }
  const std::unique_ptr<Model> model = runtime.load(job);
  answer["load_ns"] = clock_ns() - start;
  observed["tokens"] = json::array();
  observed.update(model->observed());
  if (job.phase == "describe") {
    answer["inputs"] = json::array();
    for (const auto& one : model->describe()) {
      answer["inputs"].push_back({{"name", one.name}, {"dtype", name_of(one.dtype)}, {"shape", one.shape}});
    }
  } else {
    Batch batch = prepared(job, *model, job.rows);
    observed["tokens"] = batch.tokens();
    const int64_t first = clock_ns();
    model->call(*batch.inputs[0]);
    answer["first_inference_ns"] = clock_ns() - first;
    if (job.phase == "memory") {
      for (int number = 0; number < job.runs; ++number) model->call(*batch.inputs[number % batch.inputs.size()]);
      answer["memory"] = above(baseline.memory, memory(), baseline.reset);
      answer["memory"]["runs"] = job.runs;
    }
    if (job.phase == "outputs") answer["logits"] = answers(job, *model, job.rows);
  }
  answer["observed"] = observed;
  wire.send(answer);
  if (job.phase == "time") {
    while (std::getline(std::cin, line)) wire.send(answer_request(job, *model, parsed(line)));
  }
  return 0;
}

}  // namespace

int run_wire() {
  Wire wire;
  try {
    return serve(wire);
  } catch (const RunnerError& error) {
    return wire.fail(error.kind, error.what());
  } catch (const std::exception& error) {
    return wire.fail("failed", error.what());
  }
}

}  // namespace edgekd::engine

int main() {
  const int code = edgekd::engine::run_wire();
  std::fflush(stderr);
  _exit(code);  // vendor runtimes may crash in their own exit handlers; the answer is out
}
