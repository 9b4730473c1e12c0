// tokenize TOKENIZER.JSON: a line {"text", "pair"?, "max_length"?, "truncation"?, "bare"?} in, a line {"ids", "offsets",
// "special_mask", "type_ids", "texts"} or {"error"} out. For tests, and to look at a tokenizer by hand.
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>

#include "tokenizer.hpp"

namespace {

using nlohmann::json;

edgekd::Truncation truncation_of(const std::string& name) {
  if (name == "longest_first") return edgekd::Truncation::kLongestFirst;
  if (name == "only_first") return edgekd::Truncation::kOnlyFirst;
  if (name == "only_second") return edgekd::Truncation::kOnlySecond;
  throw edgekd::TokenizerError("no such truncation: " + name + " (longest_first, only_first, only_second)");
}

json answer(const edgekd::Tokenizer& tokenizer, const json& asked) {
  const std::string text = asked.at("text");
  const std::size_t most = asked.value("max_length", edgekd::kUnlimited);
  const auto truncation = truncation_of(asked.value("truncation", "longest_first"));
  const auto encoding = asked.value("bare", false) ? tokenizer.encode_bare(text)
                        : asked.contains("pair")
                            ? tokenizer.encode_pair(text, asked["pair"].get<std::string>(), most, truncation)
                            : tokenizer.encode(text, most);
  json offsets = json::array();
  for (const edgekd::Span& span : encoding.offsets) offsets.push_back({span.start, span.end});
  return {{"ids", encoding.ids},
          {"offsets", std::move(offsets)},
          {"special_mask", encoding.special_mask},
          {"type_ids", encoding.type_ids},
          {"texts", encoding.texts}};
}

}  // namespace

int main(int count, char** arguments) {
  std::ios::sync_with_stdio(false);
  if (count != 2) {
    std::cerr << "usage: tokenize TOKENIZER.JSON < lines of {\"text\": ..}\n";
    return 2;
  }
  try {
    const auto tokenizer = edgekd::Tokenizer::load(arguments[1]);
    for (std::string line; std::getline(std::cin, line);) {
      try {
        std::cout << answer(tokenizer, json::parse(line)) << "\n";
      } catch (const std::exception& error) {
        std::cout << json{{"error", error.what()}}.dump(-1, ' ', false, json::error_handler_t::replace) << "\n";
      }
      if (std::cin.rdbuf()->in_avail() <= 0) std::cout.flush();
    }
  } catch (const edgekd::TokenizerError& error) {
    std::cerr << "tokenize: " << error.what() << "\n";
    return 1;
  }
  return 0;
}
