// edgekd-app BUNDLE ["text" ...]: answers as JSON lines; without texts the self-test. As python edgekd_app.py.
#include <iostream>

#include "edgekd_app.hpp"

int main(int count, char** arguments) {
  if (count < 2) {
    std::cerr << "usage: edgekd-app BUNDLE [\"text\" ...]\n";
    return 2;
  }
  try {
    const auto model = edgekd::EdgeModel::open(arguments[1]);
    if (count == 2) {
      const edgekd::SelfTest report = model->self_test();
      std::cout << report.json() << "\n";
      return report.passed ? 0 : 1;
    }
    for (int i = 2; i < count; ++i) std::cout << model->answer_json(arguments[i]) << "\n";
  } catch (const edgekd::BundleError& error) {
    std::cerr << "edgekd-app: " << error.what() << "\n";
    return 2;
  }
  return 0;
}
