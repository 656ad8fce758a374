// merge_ has no derivative: under Autograd it refuses to run where one would be expected. One key
// below, which inference mode keeps, it tells autograd that the weight has changed.
#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/InferenceMode.h>
#include <torch/library.h>

#include "autograd/optional.h"
#include "ops/operators.h"

namespace gralora::autograd {
namespace {

void refuse_gradients(at::Tensor& weight, const OptionalTensor& A, const OptionalTensor& B,
                      const OptionalTensor& lora_A, const OptionalTensor& lora_B, double scaling,
                      double sign) {
  TORCH_CHECK(!(is_differentiated(weight) || is_differentiated(A) || is_differentiated(B) ||
                is_differentiated(lora_A) || is_differentiated(lora_B)),
              "gralora::merge_: merging is not differentiable, got an argument that requires grad; "
              "call it under torch.no_grad()");
  at::AutoDispatchBelowAutograd guard;
  ops::merge_(weight, A, B, lora_A, lora_B, scaling, sign);
}

void count_change(at::Tensor& weight, const OptionalTensor& A, const OptionalTensor& B,
                  const OptionalTensor& lora_A, const OptionalTensor& lora_B, double scaling,
                  double sign) {
  TORCH_CHECK(!weight.is_inference() || c10::InferenceMode::is_enabled(),
              "gralora::merge_: weight is an inference tensor, which may be changed in inference "
              "mode alone");
  {
    at::AutoDispatchBelowADInplaceOrView guard;
    ops::merge_(weight, A, B, lora_A, lora_B, scaling, sign);
  }
  weight.unsafeGetTensorImpl()->bump_version();
}

}  // namespace

TORCH_LIBRARY_IMPL(gralora, Autograd, m) { m.impl("merge_", TORCH_FN(refuse_gradients)); }

TORCH_LIBRARY_IMPL(gralora, ADInplaceOrView, m) { m.impl("merge_", TORCH_FN(count_change)); }

}  // namespace gralora::autograd
