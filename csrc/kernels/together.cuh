// Two kernels' work in one launch: where neither needs the other's results, their blocks share the
// multiprocessors.
#pragma once

#include <algorithm>

#include "kernels/launch.cuh"

namespace gralora {

/// The blocks of both lie evenly between each other in the order of the launch, so that no
/// multiprocessor gets those of one kind alone. They come in units of a cluster, which the first
/// may use.
template <class First, class Second>
struct Together {
  struct Params {
    typename First::Params first;
    typename Second::Params second;
    uint32_t first_blocks, second_blocks;
    uint32_t cluster;  // divides first_blocks
  };
  static_assert(First::kThreads == Second::kThreads);
  static constexpr int kThreads = First::kThreads;
  static constexpr int kSharedBytes = std::max(First::kSharedBytes, Second::kSharedBytes);
  static constexpr int kBlocksPerProcessor =
      std::min(First::kBlocksPerProcessor, Second::kBlocksPerProcessor);

  __host__ __device__ static uint32_t count_units(uint32_t blocks, uint32_t cluster) {
    return (blocks + cluster - 1) / cluster;
  }

  __device__ static void run(const Params& p, uint32_t index, unsigned char* shared) {
    const uint32_t unit = index / p.cluster, inside = index % p.cluster;
    const uint64_t second_units = count_units(p.second_blocks, p.cluster);
    const uint64_t units = p.first_blocks / p.cluster + second_units;
    const auto second_before = static_cast<uint32_t>(unit * second_units / units);
    if ((unit + 1) * second_units / units == second_before) {
      First::run(p.first, (unit - second_before) * p.cluster + inside, shared);
    } else if (second_before * p.cluster + inside < p.second_blocks) {
      Second::run(p.second, second_before * p.cluster + inside, shared);
    }
  }
};

template <class First, class Second>
cudaError_t start_together(int64_t first_blocks, const typename First::Params& first,
                           int64_t second_blocks, const typename Second::Params& second,
                           cudaStream_t stream, unsigned cluster = 1) {
  using Work = Together<First, Second>;
  if (first_blocks + second_blocks > INT32_MAX - int64_t{cluster}) {
    return cudaErrorInvalidConfiguration;
  }
  const typename Work::Params params{first, second, static_cast<uint32_t>(first_blocks),
                                     static_cast<uint32_t>(second_blocks), cluster};
  const int64_t blocks =
      first_blocks + int64_t{Work::count_units(params.second_blocks, cluster)} * cluster;
  return start_work<Work>(blocks, params, stream, cluster);
}

}  // namespace gralora
