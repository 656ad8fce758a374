// The derivative of dropout: the same mask on the gradient. It goes through the operator again, so
// it can be differentiated in turn.
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "ops/check.h"
#include "ops/operators.h"

namespace gralora::autograd {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

class DropoutFunction : public torch::autograd::Function<DropoutFunction> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& rng_state,
                            double p) {
    at::AutoDispatchBelowADInplaceOrView guard;
    ctx->save_for_backward({rng_state});
    ctx->saved_data["p"] = p;
    return ops::dropout(x, rng_state, p);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    return {
        ops::dropout(gradients[0], ctx->get_saved_variables()[0], ctx->saved_data["p"].toDouble()),
        at::Tensor(), at::Tensor()};
  }
};

at::Tensor dropout(const at::Tensor& x, const at::Tensor& rng_state, double p) {
  check_no_function_transform("dropout");
  return DropoutFunction::apply(x, rng_state, p);
}

}  // namespace

TORCH_LIBRARY_IMPL(gralora, Autograd, m) { m.impl("dropout", TORCH_FN(dropout)); }

}  // namespace gralora::autograd
