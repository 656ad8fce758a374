// The launch of kernels/input_gradients.h: expand.cuh's work and weight_gradient.cuh's side by side
// (together.cuh), for so few tokens that each of them alone leaves the chip idle half of the time.
// Instantiated by input_gradients_bf16.cu and input_gradients_fp16.cu, called by
// input_gradients.cu.
#pragma once

#include "kernels/expand.cuh"
#include "kernels/input_gradients.h"
#include "kernels/together.cuh"
#include "kernels/weight_gradient.cuh"

namespace gralora::input_gradients {

template <class T, bool kDrops>
cudaError_t launch_work(const ExpandParams& expand, WeightGradientParams sums,
                        cudaStream_t stream) {
  using First = expand::Expansion<T, expand::SmallTile, kDrops>;
  using Second =
      weight_gradient::Gradients<T, typename weight_gradient::TileOf<GradientTile::k64x64>::type,
                                 kDrops>;
  const int64_t sum_blocks = weight_gradient::number_tiles<typename Second::Tile>(sums);
  return start_together<First, Second>(expand::count_blocks<expand::SmallTile>(expand), expand,
                                       sum_blocks, sums, stream);
}

template <class T>
cudaError_t launch(const ExpandParams& expand, const WeightGradientParams& sums,
                   cudaStream_t stream) {
  return expand.dropout.rng_state != nullptr ? launch_work<T, true>(expand, sums, stream)
                                             : launch_work<T, false>(expand, sums, stream);
}

cudaError_t launch_bf16(const ExpandParams& expand, const WeightGradientParams& sums,
                        cudaStream_t stream);
cudaError_t launch_fp16(const ExpandParams& expand, const WeightGradientParams& sums,
                        cudaStream_t stream);

}  // namespace gralora::input_gradients
