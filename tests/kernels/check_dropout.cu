// kernels/dropout.h against kernels/philox.h on the host: whole groups and odd widths, no tokens.
#include "kernels/dropout.h"
#include "mask.h"

namespace gralora::check {
namespace {

template <class T>
void check_case(int tokens, int width, int gap) {
  const int64_t pitch = width + gap;
  Array<T> x(tokens * pitch), out(static_cast<int64_t>(tokens) * width);
  const Mask mask(0.3);
  x.fill(width, pitch);
  out.poison();
  DropoutParams p{};
  p.x = x.device();
  p.out = out.device();
  p.rng_state = mask.source().rng_state;
  p.T = tokens;
  p.N = width;
  p.x_row_stride = pitch;
  p.type = Traits<T>::kType;
  p.rule = mask.rule;
  check_cuda(launch_dropout(p, nullptr), "dropout");
  out.fetch();
  int64_t wrong = tokens == 0 ? out.count_written() : 0;
  for (int64_t e = 0; e < static_cast<int64_t>(tokens) * width; ++e) {
    Exact exact;
    exact.add(mask.keeps(e) ? x[e / width * pitch + e % width] * p.rule.scale : 0);
    wrong += !is_close(out[e], exact, Traits<T>::kHalfPlace);
  }
  report(std::string(Traits<T>::kName) + " dropout T " + std::to_string(tokens) + " width " +
             std::to_string(width) + " gap " + std::to_string(gap),
         wrong);
}

template <class T>
void check_type() {
  check_case<T>(0, 64, 0);
  check_case<T>(1, 64, 0);
  check_case<T>(33, 576, 8);
  check_case<T>(33, 37, 3);
}

}  // namespace

void check_dropout() {
  check_type<__nv_bfloat16>();
  check_type<__half>();
}

}  // namespace gralora::check
