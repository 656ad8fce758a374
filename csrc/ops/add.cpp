// gralora::add, y + Delta(x) out of place, for a base layer that is not a plain matrix: draws the
// dropout key and hands on to add_forward, whose derivative is add_backward (autograd/add.cpp).
#include <torch/library.h>

#include "ops/check.h"
#include "ops/operators.h"
#include "ops/rng.h"

namespace gralora::ops {
namespace {

at::Tensor add_composite(const at::Tensor& y, const at::Tensor& x, const OptionalTensor& A,
                         const OptionalTensor& B, const OptionalTensor& lora_A,
                         const OptionalTensor& lora_B, double scaling, double dropout_p,
                         bool training) {
  check_probability("add", dropout_p);
  const double p = training ? dropout_p : 0.0;
  return std::get<0>(add_forward(y, x, A, B, lora_A, lora_B, draw_rng_state(x, p), scaling, p));
}

}  // namespace

TORCH_LIBRARY_IMPL(gralora, CompositeImplicitAutograd, m) {
  m.impl("add", TORCH_FN(add_composite));
}

}  // namespace gralora::ops
