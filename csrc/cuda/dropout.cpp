// gralora::dropout on CUDA: tensors to plain parameters, then kernels/dropout.cu.
#include "kernels/dropout.h"

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "aten/blocks.h"
#include "cuda/launch.h"
#include "ops/check.h"

namespace gralora::cuda {
namespace {

at::Tensor dropout(const at::Tensor& x, const at::Tensor& rng_state, double p) {
  check_dropout_input(x);
  check_probability("dropout", p);
  check_rng_state("dropout", rng_state, x);
  const c10::cuda::CUDAGuard guard(x.device());
  at::Tensor out = at::empty(x.sizes(), x.options());
  if (x.numel() == 0) return out;
  const int64_t width = x.dim() == 0 ? 1 : x.size(-1);
  const at::Tensor rows = aten::as_rows(x, width);
  const at::Tensor state = rng_state.contiguous();
  DropoutParams params{};
  params.x = rows.const_data_ptr();
  params.out = out.mutable_data_ptr();
  params.rng_state = state.const_data_ptr<int64_t>();
  params.T = rows.size(0);
  params.N = width;
  params.x_row_stride = rows.stride(0);
  params.type = element_type(x);
  params.rule = philox::make_dropout_rule(p);
  check_launch("dropout", launch_dropout(params, c10::cuda::getCurrentCUDAStream()));
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(gralora, CUDA, m) { m.impl("dropout", TORCH_FN(dropout)); }

}  // namespace gralora::cuda
