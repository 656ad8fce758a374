// Rounding of factors and gradients on CUDA: all fp32 tensors of a call that become 16-bit, and all
// factors whose rows must be padded, in one launch of kernels/round.cu; torch's conversion for any
// other pair of dtypes.
#include "kernels/round.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/cuda/CUDAStream.h>

#include <array>
#include <utility>

#include "cuda/launch.h"
#include "cuda/steps.h"

namespace gralora::cuda {
namespace {

/// The arrays of one launch.
class RoundCall {
 public:
  /// `tensor` becomes what the launch will write to `rounded`.
  void add(at::Tensor& tensor, at::Tensor rounded, int64_t rows, int64_t width, int64_t pitch) {
    TORCH_INTERNAL_ASSERT(params_.count < kMaxRoundings);
    params_.arrays[params_.count] = {.from = tensor.const_data_ptr(),
                                     .to = rounded.mutable_data_ptr(),
                                     .rows = rows,
                                     .width = width,
                                     .pitch = pitch,
                                     .from_type = element_type(tensor),
                                     .type = element_type(rounded)};
    sources_[params_.count++] = std::exchange(tensor, std::move(rounded));
  }

  void launch() const {
    check_launch("round", launch_round(params_, c10::cuda::getCurrentCUDAStream()));
  }

 private:
  RoundParams params_{};
  // Sources live until the launch: memory of one that is freed before could become a result's.
  std::array<at::Tensor, kMaxRoundings> sources_;
};

bool is_half(at::ScalarType dtype) { return dtype == at::kBFloat16 || dtype == at::kHalf; }

/// Dense memory in any order: the result takes over the strides, so the order does not matter.
void add_dense(RoundCall& call, at::Tensor& tensor, at::ScalarType dtype) {
  if (tensor.scalar_type() != at::kFloat || !is_half(dtype) ||
      !tensor.is_non_overlapping_and_dense()) {
    tensor = tensor.to(dtype);
    return;
  }
  const int64_t elements = tensor.numel();
  call.add(tensor, at::empty_like(tensor, tensor.options().dtype(dtype)), 1, elements, elements);
}

/// Whether kernels could not read the rows of `tensor` where they lie.
bool has_odd_rows(const at::Tensor& tensor) {
  const int64_t width = tensor.size(-1);
  return tensor.is_contiguous() && tensor.numel() > width && width % kGroup != 0;
}

void add_padded(RoundCall& call, at::Tensor& tensor, at::ScalarType dtype) {
  if (tensor.scalar_type() != at::kFloat && tensor.scalar_type() != dtype) {
    tensor = tensor.to(dtype);
  }
  const int64_t width = tensor.size(-1), rows = tensor.numel() / width;
  const int64_t pitch = (width + kGroup - 1) / kGroup * kGroup;
  auto strides = tensor.strides().vec();
  for (size_t d = 0; d + 1 < strides.size(); ++d) strides[d] = strides[d] / width * pitch;
  call.add(
      tensor,
      at::empty({rows * pitch}, tensor.options().dtype(dtype)).as_strided(tensor.sizes(), strides),
      rows, width, pitch);
}

}  // namespace

void round(std::initializer_list<aten::Rounding> roundings) {
  RoundCall call;
  for (const auto& [tensor, dtype] : roundings) {
    if (tensor == nullptr || !tensor->defined() || tensor->scalar_type() == dtype) continue;
    add_dense(call, *tensor, dtype);
  }
  call.launch();
}

void pack(std::initializer_list<aten::Rounding> factors) {
  RoundCall call;
  for (const auto& [tensor, dtype] : factors) {
    if (tensor == nullptr || !tensor->defined()) continue;
    if (is_half(dtype) && has_odd_rows(*tensor)) {
      add_padded(call, *tensor, dtype);
    } else if (tensor->scalar_type() != dtype) {
      add_dense(call, *tensor, dtype);
    }
  }
  call.launch();
}

}  // namespace gralora::cuda
