// delta_weight and merge_ on CUDA: tensors to plain parameters, dispatch/select_merge's choice,
// then kernels/merge.cu, or the library calls of aten/delta_weight.cpp.
#include "aten/delta_weight.h"

#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <utility>

#include "cuda/launch.h"
#include "dispatch/select_merge.h"
#include "kernels/merge.h"
#include "ops/delta_dtype.h"

namespace gralora::cuda {
namespace {

FactorView view_factor(const at::Tensor& factor, int64_t output_block_stride,
                       int64_t input_block_stride, int64_t wide_stride, int64_t rank_stride) {
  return {factor.const_data_ptr(), element_type(factor), output_block_stride,
          input_block_stride,      wide_stride,          rank_stride};
}

/// The parameters for a row-major weight: rows are outputs, columns inputs.
MergeParams describe(const at::Tensor& weight, const Adapter& adapter, const aten::Sizes& z) {
  MergeParams params{};
  params.weight = weight.mutable_data_ptr();
  params.type = element_type(weight);
  params.row_stride = weight.stride(0);
  params.row_blocks = z.k_out;
  params.column_blocks = z.k_in;
  params.row_width = z.m;
  params.column_width = z.n;
  params.s = z.s;
  params.r0 = z.r0;
  if (adapter.has_grid()) {
    const at::Tensor& A = adapter.A;
    const at::Tensor& B = adapter.B;
    params.rows = view_factor(B, B.stride(0), z.s * B.stride(1), B.stride(2), B.stride(1));
    params.columns = view_factor(A, z.s * A.stride(2), A.stride(0), A.stride(1), A.stride(2));
  }
  if (adapter.has_plain()) {
    const at::Tensor& A = adapter.lora_A;
    const at::Tensor& B = adapter.lora_B;
    params.plain_rows = view_factor(B, z.m * B.stride(0), 0, B.stride(0), B.stride(1));
    params.plain_columns = view_factor(A, 0, z.n * A.stride(1), A.stride(1), A.stride(0));
  }
  return params;
}

void transpose(MergeParams& params, int64_t row_stride) {
  params.row_stride = row_stride;
  std::swap(params.row_blocks, params.column_blocks);
  std::swap(params.row_width, params.column_width);
  std::swap(params.rows, params.columns);
  std::swap(params.plain_rows, params.plain_columns);
  for (FactorView* view :
       {&params.rows, &params.columns, &params.plain_rows, &params.plain_columns}) {
    std::swap(view->row_block_stride, view->column_block_stride);
  }
}

void accumulate_delta(const char* op, at::Tensor& target, const Adapter& adapter,
                      const aten::Sizes& sizes, double alpha, bool overwrite) {
  const c10::cuda::CUDAGuard guard(target.device());
  const MergeSelection selection = select_merge(
      {.m = sizes.m,
       .n = sizes.n,
       .row_stride = target.stride(0),
       .column_stride = target.stride(1),
       .element_bytes = static_cast<int64_t>(target.element_size()),
       .address = reinterpret_cast<uint64_t>(target.const_data_ptr()),
       .wide_factors = delta_dtype(adapter) == at::kDouble && target.scalar_type() != at::kDouble});
  if (selection.path == MergePath::kLibrary) {
    aten::accumulate_delta(op, target, adapter, sizes, alpha, overwrite);
    return;
  }
  MergeParams params = describe(target, adapter, sizes);
  if (selection.transposed) transpose(params, target.stride(1));
  params.alpha = alpha;
  params.overwrite = overwrite;
  params.vector = selection.path == MergePath::kVector;
  check_launch(op, launch_merge(params, c10::cuda::getCurrentCUDAStream()));
}

at::Tensor delta_weight(const OptionalTensor& A, const OptionalTensor& B,
                        const OptionalTensor& lora_A, const OptionalTensor& lora_B,
                        double scaling) {
  return aten::delta_weight({A, B, lora_A, lora_B}, scaling, accumulate_delta);
}

void merge_(at::Tensor& weight, const OptionalTensor& A, const OptionalTensor& B,
            const OptionalTensor& lora_A, const OptionalTensor& lora_B, double scaling,
            double sign) {
  aten::merge_(weight, {A, B, lora_A, lora_B}, scaling, sign, accumulate_delta);
}

}  // namespace

TORCH_LIBRARY_IMPL(gralora, CUDA, m) {
  m.impl("delta_weight", TORCH_FN(delta_weight));
  m.impl("merge_", TORCH_FN(merge_));
}

}  // namespace gralora::cuda
