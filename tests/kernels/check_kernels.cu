// Every kernel of the adapter products against a plain loop on the host, without torch: what
// compute-sanitizer runs over, since library products in the same process get in its way.
//
// Prints one line per case; the exit status is the number of cases that failed.
#include "support.h"

int main() {
  using namespace gralora::check;
  check_project();
  check_exchange();
  check_expand();
  check_weight_gradient();
  check_extended_product();
  check_round();
  check_dropout();
  check_together();
  check_overlap();
  std::printf("%d of the checks failed\n", failures);
  return failures < 100 ? failures : 99;
}
