// gralora::linear, what users reach: draws the dropout key and hands on to linear_forward, whose
// derivative is linear_backward (autograd/linear.cpp). Composite, so tracing sees both steps.
#include <torch/library.h>

#include "ops/check.h"
#include "ops/operators.h"
#include "ops/rng.h"

namespace gralora::ops {
namespace {

at::Tensor linear_composite(const at::Tensor& x, const at::Tensor& weight,
                            const OptionalTensor& bias, const OptionalTensor& A,
                            const OptionalTensor& B, const OptionalTensor& lora_A,
                            const OptionalTensor& lora_B, double scaling, double dropout_p,
                            bool training) {
  check_probability("linear", dropout_p);
  const double p = training ? dropout_p : 0.0;
  return std::get<0>(
      linear_forward(x, weight, bias, A, B, lora_A, lora_B, draw_rng_state(x, p), scaling, p));
}

}  // namespace

TORCH_LIBRARY_IMPL(gralora, CompositeImplicitAutograd, m) {
  m.impl("linear", TORCH_FN(linear_composite));
}

}  // namespace gralora::ops
