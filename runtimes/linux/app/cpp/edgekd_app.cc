#include "edgekd_app.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <tuple>
#include <utility>

#include "engine.hpp"
#include "tokenizer.hpp"
#include "unicode.hpp"
#include "words.hpp"

namespace edgekd {

namespace {

using nlohmann::json;

constexpr const char* kSchema = "edgekd/app/1";
constexpr const char* kClassification = "text-classification";
constexpr const char* kTagging = "token-classification";
constexpr const char* kAnswering = "question-answering";
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

  double at(std::size_t row, std::size_t column) const { return values[row * columns + column]; }
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

std::string text_at(const std::u32string& characters, Span span) {
  return unicode::encode(std::u32string_view(characters).substr(span.start, span.end - span.start));
}

std::size_t argmax(const std::vector<double>& values) {
  return std::max_element(values.begin(), values.end()) - values.begin();
}

void flatten(const json& values, std::vector<double>& into) {
  if (!values.is_array()) return into.push_back(values.get<double>());
  for (const json& one : values) flatten(one, into);
}

// The largest difference to golden outputs; infinite where there are not as many.
double difference_of(const std::vector<float>& found, const json& golden) {
  std::vector<double> expected;
  flatten(golden, expected);
  if (expected.size() != found.size()) return std::numeric_limits<double>::infinity();
  double largest = 0;
  for (std::size_t i = 0; i < found.size(); ++i) largest = std::max(largest, std::abs(found[i] - expected[i]));
  return largest;
}

std::string short_text(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.4g", value);
  return text;
}

// A golden text of question-answering: the question is its first line, the context the rest.
std::pair<std::string_view, std::string_view> question_and_context(std::string_view text) {
  const std::size_t end = text.find('\n');
  return {text.substr(0, end), end == std::string_view::npos ? std::string_view() : text.substr(end + 1)};
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

  // As the model reads a text, or two; raises BundleError where one is not UTF-8.
  Encoding encode(std::string_view text) const {
    return told("the text", [&] { return tokenizer.encode(text, max_length); });
  }
  Encoding encode(std::string_view first, std::string_view second) const {
    return told("the text", [&] { return tokenizer.encode_pair(first, second, max_length); });
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

  // The same; raises BundleError where there are not so many.
  Outputs run(const Encoding& encoding, std::size_t rows, std::size_t columns) {
    Outputs found = run(encoding);
    if (found.rows != rows || found.columns != columns) {
      const auto shape = [](auto one, auto other) { return std::to_string(one) + " x " + std::to_string(other); };
      throw BundleError(folder + ": the model gives " + shape(found.rows, found.columns) + " numbers and not " +
                        shape(rows, columns));
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
  if (task == kAnswering) return std::make_unique<EdgeAnswerer>(EdgeAnswerer::load(folder, options));
  if (task == kSimilarity) return std::make_unique<EdgeEmbedder>(EdgeEmbedder::load(folder, options));
  throw BundleError(folder + ": is for " + task + ", which this library has no class for");
}

// --- the self-test ---

Encoding EdgeModel::golden(const std::string& text) const { return inside_->encode(text); }

SelfTest EdgeModel::self_test() {
  Inside& inside = *inside_;
  const std::string path = inside.folder + "/model/golden.json";
  const json expected = read_json(path);
  SelfTest report;
  report.bound = inside.bound;
  std::vector<double> times;
  told(path, [&] {
    for (const json& text : expected.at("texts")) {
      const std::size_t number = report.rows.size();
      GoldenRow row;
      row.text = text;
      const Encoding encoding = golden(row.text);
      row.answer = answer_json(row.text);
      row.ids_equal = std::all_of(inside.job.signature.begin(), inside.job.signature.end(), [&](const engine::Input& input) {
        return json(column(encoding, input.name)) == expected.at("inputs").at(input.name).at(number);
      });
      std::string wrong;
      if (!row.ids_equal) {
        wrong = "token ids differ";
      } else {
        const auto began = std::chrono::steady_clock::now();
        const Outputs found = inside.run(encoding);
        row.milliseconds = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - began).count();
        row.difference = difference_of(found.values, expected.at("outputs").at("logits").at(number));
        times.push_back(*row.milliseconds);
        report.largest_difference = std::max(report.largest_difference, *row.difference);
        if (*row.difference > inside.bound) wrong = "an output is off by " + short_text(*row.difference);
      }
      if (!wrong.empty()) report.wrong.push_back("text " + std::to_string(number + 1) + ": " + wrong);
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
  const auto number = [](const std::optional<double>& one) { return one ? json(*one) : json(nullptr); };
  json shown{{"passed", passed},
             {"texts", texts},
             {"largest_difference", largest_difference},
             {"bound", bound},
             {"milliseconds", number(milliseconds)},
             {"runtime", json::parse(runtime)},
             {"wrong", wrong},
             {"rows", json::array()}};
  for (const GoldenRow& row : rows) {
    shown["rows"].push_back({{"text", row.text},
                             {"ids_equal", row.ids_equal},
                             {"difference", number(row.difference)},
                             {"milliseconds", number(row.milliseconds)},
                             {"answer", json::parse(row.answer)}});
  }
  return line_of(shown);
}

// --- text-classification ---

EdgeClassifier EdgeClassifier::load(const std::string& folder, const Options& options) {
  return EdgeClassifier(kClassification, folder, options);
}

std::vector<Label> EdgeClassifier::classify(std::string_view text, std::size_t top_k) {
  const std::vector<double> shares = softmax(inside_->run(inside_->encode(text), 1, labels().size()).row(0));
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

// --- token-classification ---

EdgeTagger EdgeTagger::load(const std::string& folder, const Options& options) {
  return EdgeTagger(kTagging, folder, options);
}

std::vector<Tag> EdgeTagger::tag(std::string_view text) {
  const Encoding encoding = inside_->encode(text);
  const Outputs outputs = inside_->run(encoding, encoding.ids.size(), labels().size());
  const std::u32string characters = unicode::decode(text);
  const std::vector<Span> words = words_of(characters);
  const auto outside = std::find(labels().begin(), labels().end(), "O");
  std::vector<std::string> tags;
  std::vector<double> scores;
  for (const auto& tokens : tokens_of(encoding, words)) {
    // A word that was cut off has no outputs: all labels are equally likely there.
    const std::vector<double> logits = tokens ? outputs.row(tokens->first) : std::vector<double>(labels().size(), 0.0);
    const bool any = std::any_of(logits.begin(), logits.end(), [](double one) { return one != 0; });
    const std::size_t none = outside == labels().end() ? 0 : outside - labels().begin();
    tags.push_back(labels()[any ? argmax(logits) : none]);
    const std::vector<double> shares = softmax(logits);
    scores.push_back(shares[argmax(shares)]);
  }
  std::vector<Tag> found;
  for (const Group& group : groups_of(tags)) {
    const Span span{words[group.first].start, words[group.last].end};
    double sum = 0;
    for (std::size_t word = group.first; word <= group.last; ++word) sum += scores[word];
    found.push_back({group.label, span.start, span.end, text_at(characters, span),
                     sum / static_cast<double>(group.last - group.first + 1)});
  }
  return found;
}

std::string EdgeTagger::answer_json(std::string_view text) {
  json found = json::array();
  for (const Tag& one : tag(text)) found.push_back({one.label, one.start, one.end, one.text, one.score});
  return line_of(found);
}

// --- question-answering ---

namespace {

// The question, and how many tokens it has.
struct Question {
  std::string text;
  std::size_t size;
};

// With single spaces, cut to so many tokens.
Question cut(const Tokenizer& tokenizer, std::string_view text, std::size_t limit) {
  const std::u32string characters = single_spaced(unicode::decode(text));
  const std::string whole = unicode::encode(characters);
  const Encoding encoding = tokenizer.encode_bare(whole);
  if (encoding.ids.size() <= limit) return {whole, encoding.ids.size()};
  return {limit == 0 ? "" : text_at(characters, {0, encoding.offsets[limit - 1].end}), limit};
}

// First and last word of each window: as many words as `room` tokens hold, but one at least. The next begins at most
// `shared` tokens before its end. A context without words is one window.
std::vector<std::pair<std::size_t, std::size_t>> windows_of(const Encoding& context, const std::vector<Span>& words,
                                                            int64_t room, int64_t shared) {
  std::vector<int64_t> begins, ends;  // of each word, in tokens; a word without tokens takes no room
  int64_t token = 0;
  for (const auto& tokens : tokens_of(context, words)) {
    begins.push_back(tokens ? static_cast<int64_t>(tokens->first) : token);
    if (tokens) token = static_cast<int64_t>(tokens->last) + 1;
    ends.push_back(token);
  }
  std::vector<std::pair<std::size_t, std::size_t>> found;
  for (std::size_t first = 0;;) {
    std::size_t stop = first + 1;
    if (!words.empty()) {
      const auto held = std::upper_bound(ends.begin(), ends.end(), begins[first] + room) - ends.begin();
      stop = std::max(stop, static_cast<std::size_t>(held));
    }
    found.emplace_back(first, stop - 1);
    if (stop >= words.size()) return found;
    const auto next = std::lower_bound(begins.begin(), begins.end(), ends[stop - 1] - shared) - begins.begin();
    first = std::min(std::max(static_cast<std::size_t>(next), first + 1), stop);
  }
}

// Start and end logits: of no answer (the model's first token), then of each word that was not cut off.
struct Logits {
  std::vector<double> start, end;
};

Logits logits_of(const Encoding& encoding, const Outputs& outputs, const std::vector<Span>& words) {
  auto places = tokens_of(encoding, words, 1);
  while (!places.empty() && !places.back()) places.pop_back();
  Tokens unit{0, 0};
  Logits found{{outputs.at(0, 0)}, {outputs.at(0, 1)}};
  for (const auto& tokens : places) {  // a word without tokens borrows those before it
    unit = tokens.value_or(unit);
    found.start.push_back(outputs.at(unit.first, 0));
    found.end.push_back(outputs.at(unit.last, 1));
  }
  return found;
}

}  // namespace

EdgeAnswerer EdgeAnswerer::load(const std::string& folder, const Options& options) {
  return EdgeAnswerer(kAnswering, folder, options);
}

Answer EdgeAnswerer::answer(std::string_view question_text, std::string_view context_text) {
  Inside& inside = *inside_;
  const auto setting = [&](const char* name) {
    return told(inside.folder, [&] { return inside.settings.at(name).get<std::size_t>(); });
  };
  const bool may_be_none = told(inside.folder, [&] { return inside.settings.at("may_be_none").get<bool>(); });
  const std::size_t longest = setting("longest_answer"), overlap = std::max<std::size_t>(setting("overlap"), 1);
  const Tokenizer& tokenizer = inside.tokenizer;
  const auto [question, context, whole] = told("the text", [&] {
    return std::tuple(cut(tokenizer, question_text, inside.max_length / 2), unicode::decode(context_text),
                      tokenizer.encode_bare(context_text));
  });
  const std::vector<Span> words = words_of(context);
  const auto taken = static_cast<int64_t>(tokenizer.special_tokens_of_pair() + question.size);
  const int64_t room = static_cast<int64_t>(inside.max_length) - taken;
  const int64_t shared = std::min<int64_t>(inside.max_length / overlap, std::max<int64_t>(room / 2, 0));

  constexpr double kNone = -std::numeric_limits<double>::infinity();
  double best = kNone;
  Answer found{"", 0, 0, 0};
  std::pair<double, double> none{std::numeric_limits<double>::infinity(), 0};  // the lowest sum of logits, its share
  for (const auto& [first, last] : windows_of(whole, words, room, shared)) {
    const Span place = words.empty() ? Span{} : Span{words[first].start, words[last].end};
    const std::u32string window = context.substr(place.start, place.end - place.start);
    const Encoding encoding = inside.encode(question.text, unicode::encode(window));
    const Logits logits = logits_of(encoding, inside.run(encoding, encoding.ids.size(), 2), words_of(window));
    const std::vector<double> starts = softmax(logits.start), ends = softmax(logits.end);
    none = std::min(none, {logits.start[0] + logits.end[0], starts[0] * ends[0]});
    for (std::size_t start = 1; start < starts.size(); ++start) {
      for (std::size_t stop = start; stop < std::min(start + longest, starts.size()); ++stop) {
        const double score = logits.start[start] + logits.end[stop];
        if (score <= best) continue;
        best = score;
        const Span span{words[first + start - 1].start, words[first + stop - 1].end};
        found = {text_at(context, span), span.start, span.end, starts[start] * ends[stop]};
      }
    }
  }
  return best == kNone || (may_be_none && none.first > best) ? Answer{"", 0, 0, none.second} : found;
}

std::string EdgeAnswerer::answer_json(std::string_view text) {
  const auto [question, context] = question_and_context(text);
  const Answer found = answer(question, context);
  return line_of({found.text, found.start, found.end, found.score});
}

Encoding EdgeAnswerer::golden(const std::string& text) const {
  const auto [question, context] = question_and_context(text);
  return inside_->encode(question, context);
}

// --- sentence-similarity ---

EdgeEmbedder EdgeEmbedder::load(const std::string& folder, const Options& options) {
  return EdgeEmbedder(kSimilarity, folder, options);
}

std::vector<float> EdgeEmbedder::embed(std::string_view text) {
  return inside_->run(inside_->encode(text)).values;
}

std::string EdgeEmbedder::answer_json(std::string_view text) {
  json found = json::array();
  for (const float value : embed(text)) found.push_back(static_cast<double>(value));
  return line_of(found);
}

}  // namespace edgekd
