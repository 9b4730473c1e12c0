// Uses the library as an app does: only its header is included, and what goes wrong is one type.
#include <cstdio>
#include <string>
#include <type_traits>
#include <utility>

#include "edgekd_app.hpp"

namespace {

int failures = 0;

void expect(bool good, const char* what) {
  if (!good) std::printf("not so: %s\n", what);
  failures += good ? 0 : 1;
}

template <typename Action>
std::string told(Action&& action) {
  try {
    action();
  } catch (const edgekd::BundleError& error) {
    return error.what();
  }
  return "";
}

}  // namespace

int main(int, char** arguments) {
  const std::string bundle = arguments[1];
  static_assert(std::is_move_constructible_v<edgekd::EdgeClassifier>);
  static_assert(!std::is_copy_constructible_v<edgekd::EdgeClassifier>);

  auto first = edgekd::EdgeClassifier::load(bundle, {2});
  auto classifier = std::move(first);
  const auto best = classifier.classify("the nile is long", 1);
  expect(best.size() == 1, "top_k is obeyed");
  expect(classifier.classify("", 100).size() == classifier.labels().size(), "an empty text has an answer");
  expect(classifier.classify("a", 0).empty(), "no answer where none is wanted");
  double sum = 0;
  for (const auto& [label, score] : classifier.classify(std::string(100000, 'a') + " b", 100)) sum += score;
  expect(sum > 0.999 && sum < 1.001, "a very long text has one too");
  expect(classifier.self_test().passed, "the golden texts");

  auto second = edgekd::EdgeClassifier::load(bundle);
  expect(second.classify("the nile is long", 1)[0].label == best[0].label, "two at once");

  expect(told([&] { edgekd::EdgeTagger::load(bundle); }).find("is for text-classification, not token-cl") !=
             std::string::npos,
         "another task is refused");
  expect(told([&] { edgekd::EdgeClassifier::load(bundle, {0}); }).find("threads") != std::string::npos, "no threads");
  expect(told([&] { edgekd::EdgeClassifier::load("nowhere"); }).find("nowhere: no bundle") == 0, "no bundle");
  expect(told([&] { classifier.classify("\xC3("); }).find("not UTF-8") != std::string::npos, "bytes that are no text");
  expect(!classifier.classify("after an error", 1).empty(), "and goes on");
  return failures;
}
