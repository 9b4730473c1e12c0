// An app's side of a bundle, in C++17: text in, a typed answer out.
//
//   auto classifier = edgekd::EdgeClassifier::load("bundle");
//   for (const auto& [label, score] : classifier.classify("my card has not arrived")) std::cout << label << "\n";
//
// One class per task, as in Python (edgekd_app.py); each has `self_test`, which runs the golden texts of the bundle and
// says whether this machine gives the ids and the outputs that were verified. A program is built for one runtime: ONNX
// Runtime, LiteRT or ExecuTorch. Texts are UTF-8, places in them count characters (Unicode code points). A text longer than
// the model takes is cut on its right; a longer context of a question is read in windows. An object is not safe for
// several threads at once: give each its own.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace edgekd {

// The bundle is not one, is for another task or runtime, or cannot read the text; the message says what to do.
class BundleError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct Options {
  int threads = 1;
};

// One golden text on this machine.
struct GoldenRow {
  std::string text;
  bool ids_equal = false;
  std::optional<double> difference;    // the largest, of the outputs; none where the ids differ: they are not run
  std::optional<double> milliseconds;  // from ids to outputs
  std::string answer;                  // as JSON
};

struct SelfTest {
  bool passed = false;
  std::size_t texts = 0;
  double largest_difference = 0;
  double bound = 0;
  std::optional<double> milliseconds;  // the median
  std::string runtime;                 // what the runtime tells of itself, as JSON
  std::vector<std::string> wrong;      // token ids that differ, outputs beyond the bound
  std::vector<GoldenRow> rows;

  // All of it as one line of JSON.
  std::string json() const;
};

struct Encoding;

// What the four have in common.
class EdgeModel {
 public:
  virtual ~EdgeModel();
  EdgeModel(EdgeModel&&) noexcept;
  EdgeModel& operator=(EdgeModel&&) noexcept;

  const std::vector<std::string>& labels() const;
  SelfTest self_test();
  // The answer to a text as one line of JSON; of question-answering the text is the question, a line break, the context.
  virtual std::string answer_json(std::string_view text) = 0;

  // The class that the bundle is for; load() of the class itself where that is known.
  static std::unique_ptr<EdgeModel> open(const std::string& folder, const Options& options = {});

 protected:
  EdgeModel(const char* task, const std::string& folder, const Options& options);
  // As the model reads a golden text.
  virtual Encoding golden(const std::string& text) const;

  struct Inside;
  std::unique_ptr<Inside> inside_;
};

struct Label {
  std::string label;
  double score;
};

class EdgeClassifier : public EdgeModel {
 public:
  static EdgeClassifier load(const std::string& folder, const Options& options = {});
  // The labels with their probabilities, best first.
  std::vector<Label> classify(std::string_view text, std::size_t top_k = 3);
  std::string answer_json(std::string_view text) override;

 private:
  using EdgeModel::EdgeModel;
};

struct Tag {
  std::string label;
  std::size_t start, end;
  std::string text;
  double score;
};

class EdgeTagger : public EdgeModel {
 public:
  static EdgeTagger load(const std::string& folder, const Options& options = {});
  // Labelled spans in the order of the text, from one BIO tag a word.
  std::vector<Tag> tag(std::string_view text);
  std::string answer_json(std::string_view text) override;

 private:
  using EdgeModel::EdgeModel;
};

struct Answer {
  std::string text;
  std::size_t start, end;  // in the context
  double score;
};

class EdgeAnswerer : public EdgeModel {
 public:
  static EdgeAnswerer load(const std::string& folder, const Options& options = {});
  // The best span of the context and its probability; {"", 0, 0, score} says that the context has no answer, where the
  // model was trained for that. A context longer than the model reads goes through it in windows that overlap; the span
  // with the largest sum of start and end logit wins.
  Answer answer(std::string_view question, std::string_view context);
  std::string answer_json(std::string_view text) override;

 private:
  using EdgeModel::EdgeModel;
  Encoding golden(const std::string& text) const override;
};

class EdgeEmbedder : public EdgeModel {
 public:
  static EdgeEmbedder load(const std::string& folder, const Options& options = {});
  // A vector for a text; texts that mean the same have a large cosine.
  std::vector<float> embed(std::string_view text);
  std::string answer_json(std::string_view text) override;

 private:
  using EdgeModel::EdgeModel;
};

}  // namespace edgekd
