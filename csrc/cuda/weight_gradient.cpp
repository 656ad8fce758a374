// The factors' gradients on CUDA: tensors to plain parameters, dispatch/select_weight_gradient's
// choice, then all of them in one launch of kernels/weight_gradient.cu, or library products whose
// fp32 sums one launch of kernels/round.cu rounds.
#include "kernels/weight_gradient.h"

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAStream.h>

#include "cuda/launch.h"
#include "cuda/steps.h"
#include "dispatch/select_weight_gradient.h"

namespace gralora::cuda {
namespace {

using Sums = std::array<aten::TokenSum, 4>;

/// Tiles of the kernel along an axis.
int64_t count_tiles(int64_t size) { return (size + kGradientTile - 1) / kGradientTile; }

WeightGradientProblem describe_problem(const Sums& sums) {
  WeightGradientProblem problem{.T = 0, .tiles = 0, .half = true, .aligned = true, .narrow = true};
  for (const aten::TokenSum& entry : sums) {
    if (!entry.left.defined()) continue;
    problem.T = entry.left.size(1);
    problem.tiles +=
        entry.left.size(0) * count_tiles(entry.left.size(2)) * count_tiles(entry.right.size(2));
    problem.half &= is_half(entry.left);
    problem.aligned &= has_aligned_rows(entry.left) && has_aligned_rows(entry.right);
    problem.narrow &= entry.dtype != at::kDouble;
  }
  return problem;
}

void sum_by_products(const Sums& sums) {
  for (const aten::TokenSum& entry : sums) {
    if (!entry.left.defined()) continue;
    *entry.sum = aten::sum_by_product(entry.left, entry.right, entry.dtype);
  }
  round({{sums[0].sum, sums[0].dtype},
         {sums[1].sum, sums[1].dtype},
         {sums[2].sum, sums[2].dtype},
         {sums[3].sum, sums[3].dtype}});
}

}  // namespace

void sum_over_tokens(const Sums& sums) {
  const WeightGradientProblem problem = describe_problem(sums);
  if (!takes_kernel("weight_gradient", select_weight_gradient(problem))) {
    sum_by_products(sums);
    return;
  }
  WeightGradientParams params{};
  for (const aten::TokenSum& entry : sums) {
    const auto& [sum, left, right, dtype] = entry;
    if (!left.defined()) continue;
    *sum = at::empty({left.size(0), left.size(2), right.size(2)}, left.options().dtype(dtype));
    params.type = element_type(left);
    params.T = static_cast<int32_t>(problem.T);
    params.sums[params.count++] = {.left = left.const_data_ptr(),
                                   .right = right.const_data_ptr(),
                                   .out = sum->mutable_data_ptr(),
                                   .left_block_stride = left.stride(0),
                                   .left_pitch = left.stride(1),
                                   .right_block_stride = right.stride(0),
                                   .right_pitch = right.stride(1),
                                   .blocks = static_cast<int32_t>(left.size(0)),
                                   .rows = static_cast<int32_t>(left.size(2)),
                                   .columns = static_cast<int32_t>(right.size(2)),
                                   .out_type = element_type(*sum)};
  }
  if (params.count == 0) return;
  check_launch("weight_gradient",
               launch_weight_gradient(params, c10::cuda::getCurrentCUDAStream()));
}

}  // namespace gralora::cuda
