// Rounding of factors and gradients on CUDA: all fp32 tensors of a call that become 16-bit in one
// launch of kernels/round.cu; torch's conversion for any other pair of dtypes.
#include "kernels/round.h"

#include <ATen/ops/empty_like.h>
#include <c10/cuda/CUDAStream.h>

#include <array>
#include <utility>

#include "cuda/launch.h"
#include "cuda/steps.h"

namespace gralora::cuda {

void round(std::initializer_list<aten::Rounding> roundings) {
  RoundParams params{};
  // Sources live until the launch: memory of one that is freed before could become a result's.
  std::array<at::Tensor, kMaxRoundings> sources;
  for (const auto& [tensor, dtype] : roundings) {
    if (tensor == nullptr || !tensor->defined() || tensor->scalar_type() == dtype) continue;
    const bool to_half = dtype == at::kBFloat16 || dtype == at::kHalf;
    // Dense memory in any order: the result takes over the strides, so the order does not matter.
    if (tensor->scalar_type() != at::kFloat || !to_half ||
        !tensor->is_non_overlapping_and_dense()) {
      *tensor = tensor->to(dtype);
      continue;
    }
    TORCH_INTERNAL_ASSERT(params.count < kMaxRoundings);
    const at::Tensor rounded = at::empty_like(*tensor, tensor->options().dtype(dtype));
    params.arrays[params.count] = {tensor->const_data_ptr<float>(), rounded.mutable_data_ptr(),
                                   tensor->numel(), element_type(rounded)};
    sources[params.count++] = std::exchange(*tensor, rounded);
  }
  check_launch("round", launch_round(params, c10::cuda::getCurrentCUDAStream()));
}

}  // namespace gralora::cuda
