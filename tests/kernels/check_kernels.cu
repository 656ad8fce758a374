// Every kernel of the adapter products against a plain loop on the host, without torch: what
// compute-sanitizer runs over, since library products in the same process get in its way.
//
//   check_kernels [--briefly] [PART...]
//
// Checks the parts named, all of them without a name; --list prints the names. --briefly leaves out
// repetitions that only show how launches overlap, since under a sanitizer they do not.
//
// Prints one line per case; the exit status is the number of cases that failed, 99 at most, 100
// where CUDA itself fails and 101 for an unknown part.
#include <cstring>

#include "support.h"

namespace gralora::check {
namespace {

struct Part {
  const char* name;
  void (*check)();
};

constexpr Part kParts[] = {
    {"project", check_project},
    {"exchange", check_exchange},
    {"expand", check_expand},
    {"thin_product", check_thin_product},
    {"weight_gradient", check_weight_gradient},
    {"extended_product_bf16", check_extended_product_bf16},
    {"extended_product_fp16", check_extended_product_fp16},
    {"round", check_round},
    {"dropout", check_dropout},
    {"together", check_together},
    {"overlap", check_overlap},
};

const Part* find_part(const char* name) {
  for (const Part& part : kParts) {
    if (std::strcmp(part.name, name) == 0) return &part;
  }
  return nullptr;
}

}  // namespace
}  // namespace gralora::check

int main(int arguments, char** argument) {
  using namespace gralora::check;
  if (arguments == 2 && std::strcmp(argument[1], "--list") == 0) {
    for (const Part& part : kParts) std::printf("%s\n", part.name);
    return 0;
  }
  if (arguments > 1 && std::strcmp(argument[1], "--briefly") == 0) {
    is_brief = true;
    --arguments;
    ++argument;
  }
  for (int i = 1; i < arguments; ++i) {
    if (find_part(argument[i]) == nullptr) {
      std::fprintf(stderr, "check_kernels: no part is named %s; --list prints the names\n",
                   argument[i]);
      return 101;
    }
  }
  for (int i = 1; i < arguments; ++i) find_part(argument[i])->check();
  if (arguments == 1) {
    for (const Part& part : kParts) part.check();
  }
  std::printf("%d of the checks failed\n", failures);
  return failures < 100 ? failures : 99;
}
