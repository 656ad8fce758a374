// merge_ has no derivative: it refuses to run where one would be expected, and tells autograd that
// the weight changed.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <torch/library.h>

#include "autograd/optional.h"
#include "ops/operators.h"

namespace gralora::autograd {
namespace {

void merge_(at::Tensor& weight, const OptionalTensor& A, const OptionalTensor& B,
            const OptionalTensor& lora_A, const OptionalTensor& lora_B, double scaling,
            double sign) {
  TORCH_CHECK(!at::GradMode::is_enabled() ||
                  !(weight.requires_grad() || requires_grad(A) || requires_grad(B) ||
                    requires_grad(lora_A) || requires_grad(lora_B)),
              "gralora::merge_: merging is not differentiable, got an argument that requires grad; "
              "call it under torch.no_grad()");
  {
    at::AutoDispatchBelowADInplaceOrView guard;
    ops::merge_(weight, A, B, lora_A, lora_B, scaling, sign);
  }
  weight.unsafeGetTensorImpl()->bump_version();
}

}  // namespace

TORCH_LIBRARY_IMPL(gralora, Autograd, m) { m.impl("merge_", TORCH_FN(merge_)); }

}  // namespace gralora::autograd
