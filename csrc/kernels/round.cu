// to[row, e] = from[row, e] rounded to 16 bits, zero beyond the row's end, for up to four arrays in
// one launch: factors on their way into a product, which reads rows that start on 16-byte
// boundaries, or summed gradients on their way to 16-bit factors.
//
// The arrays are small (r times a layer's width), so a launch for each costs more than its bytes. A
// block belongs to one array; a thread writes eight consecutive elements of a row, and reads them
// as 16-byte words where they are aligned and all there.
#include "kernels/launch.cuh"
#include "kernels/round.h"

namespace gralora {
namespace {

constexpr int kThreads = 128;
constexpr int kGroup = 8;

template <class T>
struct alignas(16) Group {
  T element[kGroup];
};

template <class From, class To>
__device__ Group<To> read_group(const From* from) {
  struct alignas(16) Words {
    From element[kGroup];
  };
  const Words words = *reinterpret_cast<const Words*>(from);
  Group<To> group;
#pragma unroll
  for (int e = 0; e < kGroup; ++e) group.element[e] = To(words.element[e]);
  return group;
}

__device__ inline bool is_aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

template <class From, class To>
__device__ void round_group(const RoundedArray& array, int64_t row, int64_t column) {
  const From* from = static_cast<const From*>(array.from) + row * array.width + column;
  To* to = static_cast<To*>(array.to) + row * array.pitch + column;
  const int64_t there = array.width - column;
  if (there >= kGroup && is_aligned(from) && is_aligned(to)) {
    *reinterpret_cast<Group<To>*>(to) = read_group<From, To>(from);
    return;
  }
#pragma unroll
  for (int e = 0; e < kGroup; ++e) {
    if (column + e < array.pitch) to[e] = e < there ? To(from[e]) : To(0.0f);
  }
}

__host__ __device__ int64_t count_row_groups(const RoundedArray& array) {
  return (array.pitch + kGroup - 1) / kGroup;
}

__host__ __device__ int64_t count_blocks(const RoundedArray& array) {
  return (array.rows * count_row_groups(array) + kThreads - 1) / kThreads;
}

template <class To>
__device__ void round_group(const RoundedArray& array, int64_t group) {
  const int64_t row_groups = count_row_groups(array);
  const int64_t row = group / row_groups, column = group % row_groups * kGroup;
  if (row >= array.rows) return;
  if (array.from_type == ElementType::kFloat32) {
    round_group<float, To>(array, row, column);
  } else {
    round_group<To, To>(array, row, column);
  }
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
      const int64_t group = block * kThreads + static_cast<int64_t>(threadIdx.x);
      if (array.type == ElementType::kBFloat16) {
        round_group<__nv_bfloat16>(array, group);
      } else {
        round_group<__half>(array, group);
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
