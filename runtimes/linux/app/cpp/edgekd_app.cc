#include "edgekd_app.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "bert.hpp"
#include "engine.hpp"
#include "tokenizer.hpp"
#include "unicode.hpp"

namespace edgekd {

namespace {

using nlohmann::json;

constexpr const char* kSchema = "edgekd/app/1";
constexpr const char* kClassification = "text-classification";
constexpr const char* kTagging = "token-classification";
constexpr const char* kSimilarity = "sentence-similarity";

// Whatever goes wrong inside becomes a BundleError that says where.
template <typename Action>
auto told(const std::string& where, Action&& action) {
  try {
    return action();
  } catch (const BundleError&) {
    throw;
  } catch (const std::exception& error) {
    throw BundleError(where + ": " + error.what());
  }
}

json read_json(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw BundleError(path + ": cannot be opened");
  return told(path, [&] { return json::parse(file); });
}

json read_settings(const std::string& folder) {
  const std::string path = folder + "/app.json";
  json settings;
  try {
    settings = read_json(path);
  } catch (const BundleError& error) {
    throw BundleError(folder + ": no bundle (" + error.what() + ")");
  }
  if (!settings.is_object() || settings.value("schema", json()) != json(kSchema)) {
    throw BundleError(folder + ": app.json is not of " + kSchema + ": make the bundle with this library's edgekd");
  }
  return settings;
}

std::string line_of(const json& document) {
  return document.dump(-1, ' ', false, json::error_handler_t::replace);
}

// One runtime for all models of a program. It stays to the end: vendors' libraries do not like to be taken down.
engine::Runtime& the_runtime() {
  static engine::Runtime* const runtime = edgekd_open_runtime();
  return *runtime;
}

engine::Job job_of(const json& settings, const std::string& folder, const Options& options) {
  engine::Job job;
  job.phase = "outputs";
  job.runtime = settings.at("target");
  job.model = folder + "/model/" + settings.at("file").get<std::string>();
  job.threads = options.threads;
  for (const json& one : settings.at("inputs")) {
    job.signature.push_back({one.at("name"), engine::dtype_of(one.at("dtype")), {}});
  }
  job.fixed_lengths = settings.at("lengths").get<std::vector<int64_t>>();
  job.pad_id = settings.at("pad_id");
  if (job.runtime != the_runtime().name()) {
    throw BundleError(folder + ": is for " + job.runtime + ", and this program was built with " + the_runtime().name());
  }
  if (job.threads < 1) throw BundleError("threads is not a positive number: " + std::to_string(job.threads));
  if (!std::ifstream(job.model)) throw BundleError(job.model + ": cannot be opened");
  return job;
}

// What a text is to the model: the values of one input.
std::vector<int64_t> column(const Encoding& encoding, const std::string& name) {
  if (name == "input_ids") return encoding.ids;
  if (name == "attention_mask") return std::vector<int64_t>(encoding.ids.size(), 1);
  if (name == "token_type_ids") return encoding.type_ids;
  throw BundleError("the model has an input '" + name + "', which no text gives");
}

// The outputs for a text: of one row, or of one row per token.
struct Outputs {
  std::size_t rows, columns;
  std::vector<float> values;

  std::vector<double> row(std::size_t at) const {
    return {values.begin() + at * columns, values.begin() + (at + 1) * columns};
  }
};

std::vector<double> softmax(std::vector<double> logits) {
  const double largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (double& value : logits) sum += value = std::exp(value - largest);
  for (double& value : logits) value /= sum;
  return logits;
}

std::size_t argmax(const std::vector<double>& values) {
  return std::max_element(values.begin(), values.end()) - values.begin();
}

void flatten(const json& values, std::vector<double>& into) {
  if (!values.is_array()) return into.push_back(values.get<double>());
  for (const json& one : values) flatten(one, into);
}

// The first token that overlaps each word; none where there is none. Both are in the order of the text.
std::vector<std::optional<std::size_t>> first_tokens(const std::vector<Span>& offsets, const std::vector<Span>& words) {
  std::vector<std::optional<std::size_t>> found;
  std::size_t at = 0;
  const auto passed = [&](std::size_t start) { return offsets[at].end <= offsets[at].start || offsets[at].end <= start; };
  for (const Span& word : words) {
    while (at < offsets.size() && passed(word.start)) ++at;
    const bool overlaps = at < offsets.size() && offsets[at].start < word.end;
    found.push_back(overlaps ? std::optional(at) : std::nullopt);
  }
  return found;
}

struct TagSpan {
  std::string label;
  std::size_t first, last;  // words
};

// Spans of BIO tags: one begins at B, and at an I that does not continue a span of its label.
std::vector<TagSpan> spans_of(const std::vector<std::string>& tags) {
  std::vector<TagSpan> found;
  std::optional<std::string> before;
  for (std::size_t word = 0; word < tags.size(); ++word) {
    const std::size_t dash = tags[word].find('-');
    const std::string kind = tags[word].substr(0, dash);
    const std::string label = dash == std::string::npos ? "" : tags[word].substr(dash + 1);
    if (kind == "I" && before == label) {
      found.back().last = word;
    } else if (kind != "O") {
      found.push_back({label, word, word});
    }
    before = kind == "O" ? std::nullopt : std::optional(label);
  }
  return found;
}

}  // namespace

// --- a bundle, opened ---

struct EdgeModel::Inside {
  Inside(const char* task, const std::string& folder_, const Options& options)
      : folder(folder_), settings(read_settings(folder_)), tokenizer(opened(task)) {
    told(folder, [&] {
      labels = settings.at("labels").get<std::vector<std::string>>();
      max_length = settings.at("max_length");
      bound = settings.at("bound");
      job = job_of(settings, folder, options);
      rows_of(tokenizer.encode("", max_length));  // refuses what no text can give
      model = the_runtime().load(job);
    });
  }

  // Raises BundleError for text that is not UTF-8.
  Encoding encode(std::string_view text) const {
    return told("the text", [&] { return tokenizer.encode(text, max_length); });
  }

  engine::Row rows_of(const Encoding& encoding) const {
    if (encoding.ids.empty()) throw BundleError("the text has no tokens, and this tokenizer adds none to it");
    engine::Row row;
    row.tokens = static_cast<int64_t>(encoding.ids.size());
    for (const engine::Input& input : job.signature) {
      row.inputs.emplace_back(input.name, engine::Values{{1, row.tokens}, column(encoding, input.name), {}});
    }
    return row;
  }

  Outputs run(const Encoding& encoding) {
    return told(folder, [&] {
      const auto inputs = model->prepare(engine::padded(job, rows_of(encoding)));
      model->call(*inputs);
      engine::Output output = model->output();
      const std::size_t rank = output.shape.size();
      if (rank < 2 || rank > 3 || output.values.empty()) throw BundleError("the model's output is neither a row nor a table");
      const auto all_finite = [](float one) { return std::isfinite(one); };
      if (!std::all_of(output.values.begin(), output.values.end(), all_finite)) {
        throw BundleError("the model's output has a number that is not finite");
      }
      Outputs found{1, static_cast<std::size_t>(output.shape.back()), std::move(output.values)};
      if (rank == 3) {  // those of the padding are cut off
        found.rows = std::min(encoding.ids.size(), static_cast<std::size_t>(output.shape[1]));
        found.values.resize(found.rows * found.columns);
      }
      return found;
    });
  }

  // The same, and there is an output for each label.
  Outputs run_for_labels(const Encoding& encoding) {
    Outputs found = run(encoding);
    if (found.columns != labels.size()) {
      throw BundleError(folder + ": the model has " + std::to_string(found.columns) + " outputs, app.json " +
                        std::to_string(labels.size()) + " labels");
    }
    return found;
  }

  std::string folder;
  json settings;
  Tokenizer tokenizer;
  engine::Job job;
  std::unique_ptr<engine::Model> model;
  std::vector<std::string> labels;
  std::size_t max_length = 0;
  double bound = 0;

 private:
  // Before it, whether the bundle is for this class: nothing of a wrong one is opened.
  Tokenizer opened(const char* task) const {
    return told(folder, [&] {
      const std::string own = settings.at("task");
      if (own != task) throw BundleError(folder + ": is for " + own + ", not " + task);
      return Tokenizer::load(folder + "/model/tokenizer.json");
    });
  }
};

EdgeModel::EdgeModel(const char* task, const std::string& folder, const Options& options)
    : inside_(std::make_unique<Inside>(task, folder, options)) {}
EdgeModel::~EdgeModel() = default;
EdgeModel::EdgeModel(EdgeModel&&) noexcept = default;
EdgeModel& EdgeModel::operator=(EdgeModel&&) noexcept = default;

const std::vector<std::string>& EdgeModel::labels() const { return inside_->labels; }

std::unique_ptr<EdgeModel> EdgeModel::open(const std::string& folder, const Options& options) {
  const json settings = read_settings(folder);
  const std::string task = told(folder, [&] { return settings.at("task").get<std::string>(); });
  if (task == kClassification) return std::make_unique<EdgeClassifier>(EdgeClassifier::load(folder, options));
  if (task == kTagging) return std::make_unique<EdgeTagger>(EdgeTagger::load(folder, options));
  if (task == kSimilarity) return std::make_unique<EdgeEmbedder>(EdgeEmbedder::load(folder, options));
  throw BundleError(folder + ": is for " + task + ", which this library has no class for");
}

// --- the self-test ---

SelfTest EdgeModel::self_test() {
  Inside& inside = *inside_;
  const std::string path = inside.folder + "/model/golden.json";
  const json golden = read_json(path);
  SelfTest report;
  report.bound = inside.bound;
  std::vector<double> times;
  told(path, [&] {
    for (const json& text : golden.at("texts")) {
      const std::size_t number = report.rows.size();
      const std::string place = "text " + std::to_string(number + 1);
      GoldenRow row;
      row.text = text;
      const Encoding encoding = inside.encode(row.text);
      row.ids_equal = std::all_of(inside.job.signature.begin(), inside.job.signature.end(), [&](const engine::Input& input) {
        const auto expected = golden.at("inputs").at(input.name).at(number).get<std::vector<int64_t>>();
        return column(encoding, input.name) == expected;
      });
      if (!row.ids_equal) {
        report.wrong.push_back(place + ": token ids differ");
        report.rows.push_back(std::move(row));
        continue;
      }
      const auto began = std::chrono::steady_clock::now();
      const Outputs found = inside.run(encoding);
      row.milliseconds = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - began).count();
      times.push_back(row.milliseconds);
      std::vector<double> expected;
      flatten(golden.at("outputs").at("logits").at(number), expected);
      if (expected.size() != found.values.size()) throw BundleError(path + ": " + place + " has another number of outputs");
      for (std::size_t i = 0; i < expected.size(); ++i) {
        row.difference = std::max(row.difference, std::abs(found.values[i] - expected[i]));
      }
      report.largest_difference = std::max(report.largest_difference, row.difference);
      if (row.difference > inside.bound) {
        char number_text[32];
        std::snprintf(number_text, sizeof number_text, "%.4g", row.difference);
        report.wrong.push_back(place + ": an output is off by " + number_text);
      }
      row.answer = answer_json(row.text);
      report.rows.push_back(std::move(row));
    }
  });
  report.texts = report.rows.size();
  report.passed = report.wrong.empty();
  std::sort(times.begin(), times.end());
  if (!times.empty()) report.milliseconds = times[times.size() / 2];
  report.runtime = told(inside.folder, [&] { return inside.model->observed().dump(); });
  return report;
}

std::string SelfTest::json() const {
  using nlohmann::json;  // this function has the name of the type
  json shown{{"passed", passed},
             {"texts", texts},
             {"largest_difference", largest_difference},
             {"bound", bound},
             {"milliseconds", milliseconds ? json(*milliseconds) : json(nullptr)},
             {"runtime", json::parse(runtime)},
             {"wrong", wrong},
             {"rows", json::array()}};
  for (const GoldenRow& row : rows) {
    json one{{"text", row.text}, {"ids_equal", row.ids_equal}};
    if (row.ids_equal) {
      one["difference"] = row.difference;
      one["milliseconds"] = row.milliseconds;
      one["answer"] = json::parse(row.answer);
    }
    shown["rows"].push_back(std::move(one));
  }
  return line_of(shown);
}

// --- the tasks ---

EdgeClassifier EdgeClassifier::load(const std::string& folder, const Options& options) {
  return EdgeClassifier(kClassification, folder, options);
}

std::vector<Label> EdgeClassifier::classify(std::string_view text, std::size_t top_k) {
  const std::vector<double> shares = softmax(inside_->run_for_labels(inside_->encode(text)).row(0));
  std::vector<std::size_t> order(shares.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](auto one, auto other) { return shares[one] > shares[other]; });
  order.resize(std::min(top_k, order.size()));
  std::vector<Label> found;
  for (const std::size_t i : order) found.push_back({labels()[i], shares[i]});
  return found;
}

std::string EdgeClassifier::answer_json(std::string_view text) {
  json found = json::array();
  for (const auto& [label, score] : classify(text)) found.push_back({label, score});
  return line_of(found);
}

EdgeTagger EdgeTagger::load(const std::string& folder, const Options& options) {
  return EdgeTagger(kTagging, folder, options);
}

std::vector<Tag> EdgeTagger::tag(std::string_view text) {
  const Encoding encoding = inside_->encode(text);
  const Outputs outputs = inside_->run_for_labels(encoding);
  if (outputs.rows != encoding.ids.size()) throw BundleError(inside_->folder + ": the model has not one output for each token");
  const std::u32string characters = unicode::decode(text);
  std::vector<AlignedText> parts;
  split_bert(AlignedText(characters), parts);
  std::vector<Span> words;
  for (const AlignedText& part : parts) words.push_back(part.original({0, part.size()}));
  const auto outside = std::find(labels().begin(), labels().end(), "O");
  std::vector<std::string> tags;
  std::vector<double> scores;
  for (const auto& first : first_tokens(encoding.offsets, words)) {
    // A word that was cut off has no outputs: all labels are equally likely there.
    const std::vector<double> logits = first ? outputs.row(*first) : std::vector<double>(labels().size(), 0.0);
    const bool any = std::any_of(logits.begin(), logits.end(), [](double one) { return one != 0; });
    const std::size_t none = outside == labels().end() ? 0 : outside - labels().begin();
    tags.push_back(labels()[any ? argmax(logits) : none]);
    const std::vector<double> shares = softmax(logits);
    scores.push_back(shares[argmax(shares)]);
  }
  std::vector<Tag> found;
  for (const TagSpan& span : spans_of(tags)) {
    const std::size_t start = words[span.first].start, end = words[span.last].end;
    double sum = 0;
    for (std::size_t word = span.first; word <= span.last; ++word) sum += scores[word];
    found.push_back({span.label, start, end, unicode::encode(std::u32string_view(characters).substr(start, end - start)),
                     sum / static_cast<double>(span.last - span.first + 1)});
  }
  return found;
}

std::string EdgeTagger::answer_json(std::string_view text) {
  json found = json::array();
  for (const Tag& one : tag(text)) found.push_back({one.label, one.start, one.end, one.text, one.score});
  return line_of(found);
}

EdgeEmbedder EdgeEmbedder::load(const std::string& folder, const Options& options) {
  return EdgeEmbedder(kSimilarity, folder, options);
}

std::vector<float> EdgeEmbedder::embed(std::string_view text) {
  Outputs found = inside_->run(inside_->encode(text));
  if (found.rows != 1) throw BundleError(inside_->folder + ": the model has not one output for a text");
  return std::move(found.values);
}

std::string EdgeEmbedder::answer_json(std::string_view text) {
  json found = json::array();
  for (const float value : embed(text)) found.push_back(static_cast<double>(value));
  return line_of(found);
}

}  // namespace edgekd
