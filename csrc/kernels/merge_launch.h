// The merge kernels by the weight's type; kernels/merge.cu chooses among them.
#pragma once

#include "kernels/merge.h"

namespace gralora::merge {

cudaError_t launch_bfloat16(const MergeParams& params, cudaStream_t stream);  // merge_half.cu
cudaError_t launch_float16(const MergeParams& params, cudaStream_t stream);   // merge_half.cu
cudaError_t launch_float32(const MergeParams& params, cudaStream_t stream);   // merge_float.cu
cudaError_t launch_float64(const MergeParams& params, cudaStream_t stream);   // merge_float.cu

}  // namespace gralora::merge
