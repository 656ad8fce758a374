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

constexpr uint64_t kAlignment = 16;

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

/// Whether kernels could read the rows of a factor if they lay elsewhere: ranks of any number, side
/// by side, where the other axis is whole groups; or memory that starts off a boundary.
bool wants_other_rows(const at::Tensor& factor, bool rank_is_last) {
  if (!factor.is_contiguous() || factor.numel() == 0) return false;
  if (factor.size(-1) % kGroup != 0) return rank_is_last && factor.size(-2) % kGroup == 0;
  return reinterpret_cast<uint64_t>(factor.const_data_ptr()) % kAlignment != 0;
}

/// Rows that start on boundaries.
void add_padded(RoundCall& call, at::Tensor& tensor, at::ScalarType dtype) {
  if (tensor.scalar_type() != at::kFloat && tensor.scalar_type() != dtype) {
    tensor = tensor.to(dtype);
  }
  const int64_t width = tensor.size(-1), rows = tensor.numel() / width;
  const int64_t pitch = (width + kGroup - 1) / kGroup * kGroup;
  auto sizes = tensor.sizes().vec();
  sizes.back() = pitch;
  const at::Tensor whole = at::empty(sizes, tensor.options().dtype(dtype));
  call.add(tensor, whole.narrow(-1, 0, width), rows, width, pitch);
}

}  // namespace

void round(std::initializer_list<aten::Rounding> roundings) {
  RoundCall call;
  for (const auto& [tensor, dtype, rank_is_last] : roundings) {
    if (tensor == nullptr || !tensor->defined() || tensor->scalar_type() == dtype) continue;
    add_dense(call, *tensor, dtype);
  }
  call.launch();
}

void pack(std::initializer_list<aten::Rounding> factors) {
  RoundCall call;
  const bool kernels_may_read = forced_path() != ForcedPath::kAten;
  for (const auto& [tensor, dtype, rank_is_last] : factors) {
    if (tensor == nullptr || !tensor->defined()) continue;
    if (kernels_may_read && is_half(dtype) && wants_other_rows(*tensor, rank_is_last)) {
      add_padded(call, *tensor, dtype);
    } else if (tensor->scalar_type() != dtype) {
      add_dense(call, *tensor, dtype);
    }
  }
  call.launch();
}

}  // namespace gralora::cuda
