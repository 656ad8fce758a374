// to[e] = from[e] rounded to 16 bits, for up to four arrays in one launch: fp32 factors on their
// way into a product, or summed gradients on their way to 16-bit factors.
//
// The arrays are small (r times a layer's width), so a launch for each costs more than its bytes. A
// block belongs to one array; a thread takes eight consecutive elements, 32 bytes in and 16 out
// where both are aligned.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/launch.cuh"
#include "kernels/round.h"

namespace gralora {
namespace {

constexpr int kThreads = 128;
constexpr int kGroup = 8;
constexpr int kBlockElements = kThreads * kGroup;

template <class T>
__device__ void round_group(const RoundedArray& array, int64_t first) {
  struct alignas(16) Group {
    T element[kGroup];
  };
  const float* from = array.from + first;  // [elements]
  T* to = static_cast<T*>(array.to) + first;
  const bool aligned = reinterpret_cast<uintptr_t>(array.from) % 16 == 0 &&
                       reinterpret_cast<uintptr_t>(array.to) % 16 == 0;
  if (aligned && first + kGroup <= array.elements) {
    const float4 low = reinterpret_cast<const float4*>(from)[0];
    const float4 high = reinterpret_cast<const float4*>(from)[1];
    *reinterpret_cast<Group*>(to) = {
        {T(low.x), T(low.y), T(low.z), T(low.w), T(high.x), T(high.y), T(high.z), T(high.w)}};
    return;
  }
#pragma unroll
  for (int e = 0; e < kGroup; ++e) {
    if (first + e < array.elements) to[e] = T(from[e]);
  }
}

__host__ __device__ int64_t count_blocks(const RoundedArray& array) {
  return (array.elements + kBlockElements - 1) / kBlockElements;
}

__global__ void __launch_bounds__(kThreads) round_kernel(const RoundParams p) {
  ptx::wait_for_earlier_kernels();
  ptx::release_next_kernel();
  int64_t block = blockIdx.x;
#pragma unroll
  for (int a = 0; a < kMaxRoundings; ++a) {
    if (a >= p.count) return;
    const RoundedArray& array = p.arrays[a];
    const int64_t blocks = count_blocks(array);
    if (block < blocks) {
      const int64_t first = block * kBlockElements + static_cast<int64_t>(threadIdx.x) * kGroup;
      if (array.type == ElementType::kBFloat16) {
        round_group<__nv_bfloat16>(array, first);
      } else {
        round_group<__half>(array, first);
      }
      return;
    }
    block -= blocks;
  }
}

}  // namespace

cudaError_t launch_round(const RoundParams& params, cudaStream_t stream) {
  int64_t blocks = 0;
  for (int a = 0; a < params.count; ++a) blocks += count_blocks(params.arrays[a]);
  return start_kernel<round_kernel, kThreads, 0>(blocks, params, stream);
}

}  // namespace gralora
