// The two launches of a backward pass over few tokens: dispatch/share_launch.h's word, then
// kernels/output_gradients.cu and kernels/input_gradients.cu.
#include <c10/cuda/CUDAStream.h>

#include "cuda/expand.h"
#include "cuda/project.h"
#include "cuda/steps.h"
#include "cuda/weight_gradient.h"
#include "dispatch/share_launch.h"
#include "kernels/input_gradients.h"
#include "kernels/output_gradients.h"

namespace gralora::cuda {

bool project_beside_sums(at::Tensor& latent, const aten::AdapterInput& input,
                         const at::Tensor& factor, double scaling, const aten::TokenSums& sums) {
  const Projection projection{latent, input, factor, scaling};
  const ProjectSelection selection = projection.select();
  if (!takes_kernel("project", selection.choice) || input.dropout().drops()) return false;
  const aten::AdapterInput no_input;
  const WeightGradientSelection summing = select_sums(sums, no_input);
  if (!takes_kernel("weight_gradient", summing.choice) ||
      !share_launch(input.rows().size(0), selection, summing)) {
    return false;
  }
  const GradientCall call(sums, no_input, summing);
  check_launch("output_gradients",
               launch_output_gradients(projection.describe(selection, DropoutArgument({})),
                                       call.params(), c10::cuda::getCurrentCUDAStream()));
  return true;
}

bool expand_beside_sums(at::Tensor& rows, const aten::Latents& latents,
                        const at::Tensor& grid_factor, const at::Tensor& plain_factor,
                        const aten::TokenSums& sums, const aten::AdapterInput& input) {
  const DropoutArgument dropout(input.dropout());
  const Expansion expansion{rows, latents, grid_factor, plain_factor, nullptr, dropout.source};
  const ExpandSelection selection = expansion.select();
  if (!takes_kernel("expand", selection.choice)) return false;
  const WeightGradientSelection summing = select_sums(sums, input);
  if (!takes_kernel("weight_gradient", summing.choice) ||
      !share_launch(rows.size(0), selection, summing)) {
    return false;
  }
  const GradientCall call(sums, input, summing);
  check_launch("input_gradients",
               launch_input_gradients(expansion.describe(selection.tile), call.params(),
                                      c10::cuda::getCurrentCUDAStream()));
  return true;
}

}  // namespace gralora::cuda
