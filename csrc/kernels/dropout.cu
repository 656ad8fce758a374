// out[t, c] = kept(t*N + c) ? scale * x[t, c] : 0, with the generator of kernels/philox.h.
//
// x    [T, N]  any row stride, unit column stride
// out  [T, N]  contiguous
//
// A thread owns groups of eight consecutive elements: one generator call and, where rows are whole
// groups on 16-byte boundaries, one vector load and store each. No shared memory; about 30
// registers. The seed and offset are read on the device, so a replayed graph sees the values of its
// replay.
#include <algorithm>

#include "kernels/dropout.h"
#include "kernels/launch.cuh"

namespace gralora {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 1 << 20;

template <class T>
__device__ T scale_element(T value, double scale) {
  if constexpr (sizeof(T) == 8) {
    return value * scale;
  } else {
    return static_cast<T>(static_cast<float>(value) * static_cast<float>(scale));
  }
}

template <class T>
struct alignas(sizeof(T) * philox::kGroup > 16 ? 16 : sizeof(T) * philox::kGroup) Group {
  T element[philox::kGroup];
};

/// kVector: N is a multiple of eight and both tensors' rows are 16-byte aligned.
template <class T, bool kVector>
__global__ void __launch_bounds__(kThreads) dropout_kernel(const DropoutParams p) {
  ptx::wait_for_earlier_kernels();
  ptx::release_next_kernel();
  const T* x = static_cast<const T*>(p.x);  // [T, N]
  T* out = static_cast<T*>(p.out);          // [T, N]
  const uint64_t seed = static_cast<uint64_t>(p.rng_state[0]);
  const uint64_t offset = static_cast<uint64_t>(p.rng_state[1]);
  const int64_t elements = p.T * p.N;
  const int64_t groups = (elements + philox::kGroup - 1) / philox::kGroup;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t g = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; g < groups;
       g += step) {
    const philox::Words words = philox::generate(seed, offset, static_cast<uint64_t>(g));
    const int64_t first = g * philox::kGroup;
    if constexpr (kVector) {
      const int64_t t = first / p.N;
      Group<T> values =
          *reinterpret_cast<const Group<T>*>(x + t * p.x_row_stride + (first - t * p.N));
#pragma unroll
      for (int lane = 0; lane < philox::kGroup; ++lane) {
        values.element[lane] = words.number(lane) >= p.rule.threshold
                                   ? scale_element(values.element[lane], p.rule.scale)
                                   : T(0.0f);
      }
      *reinterpret_cast<Group<T>*>(out + first) = values;
    } else {
#pragma unroll
      for (int lane = 0; lane < philox::kGroup; ++lane) {
        const int64_t e = first + lane;
        if (e >= elements) break;
        const int64_t t = e / p.N;
        const T value = x[t * p.x_row_stride + (e - t * p.N)];
        out[e] =
            words.number(lane) >= p.rule.threshold ? scale_element(value, p.rule.scale) : T(0.0f);
      }
    }
  }
}

bool is_vectorisable(const DropoutParams& p) {
  const auto aligned = [](const void* pointer) {
    return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
  };
  return p.N % philox::kGroup == 0 && p.x_row_stride % philox::kGroup == 0 && aligned(p.x) &&
         aligned(p.out);
}

template <class T>
cudaError_t launch(const DropoutParams& p, cudaStream_t stream) {
  const int64_t groups = (p.T * p.N + philox::kGroup - 1) / philox::kGroup;
  const int64_t blocks = std::min((groups + kThreads - 1) / kThreads, kMaxBlocks);
  return is_vectorisable(p)
             ? start_kernel<dropout_kernel<T, true>, kThreads, 0>(blocks, p, stream)
             : start_kernel<dropout_kernel<T, false>, kThreads, 0>(blocks, p, stream);
}

}  // namespace

cudaError_t launch_dropout(const DropoutParams& params, cudaStream_t stream) {
  if (params.T * params.N == 0) return cudaSuccess;
  switch (params.type) {
    case ElementType::kFloat64:
      return launch<double>(params, stream);
    case ElementType::kFloat32:
      return launch<float>(params, stream);
    case ElementType::kBFloat16:
      return launch<__nv_bfloat16>(params, stream);
    case ElementType::kFloat16:
      return launch<__half>(params, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace gralora
