// vmap would fall back to a slow loop over the operators; refuse it like the other torch.func
// transforms, which ops/check.h refuses.
#include <torch/library.h>

namespace gralora::autograd {
namespace {

void refuse_vmap(const c10::OperatorHandle& op, torch::jit::Stack*) {
  TORCH_CHECK_NOT_IMPLEMENTED(
      false, op.schema().name(),
      ": torch.func transforms (grad, vjp, jvp, vmap, ...) are not "
      "supported; x takes any leading dimensions, other arguments want a loop");
}

}  // namespace

TORCH_LIBRARY_IMPL(gralora, FuncTorchBatched, m) {
  for (const char* name : {"linear", "linear_forward", "linear_backward", "linear_group",
                           "linear_group_forward", "linear_group_backward", "add", "add_forward",
                           "add_backward", "delta_weight", "merge_", "dropout"}) {
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&refuse_vmap>());
  }
}

}  // namespace gralora::autograd
