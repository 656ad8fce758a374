// delta_weight with a derivative of any order: where one is asked for, DW is written as
// differentiable torch operators; elsewhere the call goes on to the kernel.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/matmul.h>
#include <torch/library.h>

#include "autograd/optional.h"
#include "ops/check.h"
#include "ops/delta_dtype.h"
#include "ops/operators.h"

namespace gralora::autograd {
namespace {

at::Tensor differentiable_delta_weight(const Adapter& adapter, double scaling) {
  const AdapterShape shape = check_adapter("delta_weight", adapter);
  const at::ScalarType result_dtype = delta_dtype(adapter);
  const at::ScalarType dtype = delta_sum_dtype(result_dtype, adapter);
  at::Tensor delta;
  if (adapter.has_grid()) {
    const at::Tensor rows = adapter.B.to(dtype)
                                .unflatten_symint(1, {shape.k_in, shape.s})
                                .transpose(2, 3);  // [k_out, k_in, m, s]
    const at::Tensor columns = adapter.A.to(dtype)
                                   .unflatten_symint(2, {shape.k_out, shape.s})
                                   .permute({2, 0, 3, 1});  // [k_out, k_in, s, n]
    delta = at::matmul(rows, columns).transpose(1, 2).reshape_symint({shape.M, shape.N});
  }
  if (adapter.has_plain()) {
    const at::Tensor plain = at::matmul(adapter.lora_B.to(dtype), adapter.lora_A.to(dtype));
    delta = delta.defined() ? delta.add(plain) : plain;
  }
  return delta.mul(scaling).to(result_dtype);
}

at::Tensor delta_weight(const OptionalTensor& A, const OptionalTensor& B,
                        const OptionalTensor& lora_A, const OptionalTensor& lora_B,
                        double scaling) {
  if (is_differentiated(A) || is_differentiated(B) || is_differentiated(lora_A) ||
      is_differentiated(lora_B)) {
    return differentiable_delta_weight(Adapter(A, B, lora_A, lora_B), scaling);
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return ops::delta_weight(A, B, lora_A, lora_B, scaling);
}

}  // namespace

TORCH_LIBRARY_IMPL(gralora, Autograd, m) { m.impl("delta_weight", TORCH_FN(delta_weight)); }

}  // namespace gralora::autograd
