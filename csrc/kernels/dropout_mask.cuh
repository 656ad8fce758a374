// The dropout of kernels/philox.h where the products meet it: on 16-byte chunks of 16-bit elements,
// each one group of the generator, so that one call decides a whole chunk and no mask is stored.
#pragma once

#include "kernels/dropout.h"

namespace gralora {

/// Stands where nothing is dropped.
struct NoDropout {
  static constexpr bool kActive = false;
};

/// Dropout of a tensor [T, N] with N a multiple of eight. The key is read on the device, so a
/// replayed graph draws with the values of its replay.
struct ChunkDropout {
  static constexpr bool kActive = true;

  __device__ ChunkDropout(const DropoutSource& source, int64_t width, int64_t row, int64_t column)
      : seed(static_cast<uint64_t>(source.rng_state[0])),
        offset(static_cast<uint64_t>(source.rng_state[1])),
        groups_per_row(width / philox::kGroup),
        first(row * groups_per_row + column / philox::kGroup),
        threshold(source.rule.threshold) {}

  /// What decides on the chunk that lies `rows` and `columns` (a multiple of eight) beyond the
  /// first.
  __device__ philox::Words numbers(int64_t rows, int64_t columns) const {
    const int64_t group = first + rows * groups_per_row + columns / philox::kGroup;
    return philox::generate(seed, offset, static_cast<uint64_t>(group));
  }

  /// The chunk that lies `rows` and `columns` (a multiple of eight) beyond the first.
  __device__ uint4 operator()(uint4 chunk, int64_t rows, int64_t columns) const {
    const philox::Words words = numbers(rows, columns);
    return {keep(chunk.x, words.word[0]), keep(chunk.y, words.word[1]),
            keep(chunk.z, words.word[2]), keep(chunk.w, words.word[3])};
  }

  __device__ bool keeps(uint32_t number) const { return number >= threshold; }

  uint64_t seed, offset;
  int64_t groups_per_row, first;
  uint32_t threshold;

 private:
  /// Two elements and their two numbers.
  __device__ uint32_t keep(uint32_t pair, uint32_t numbers) const {
    const uint32_t low = keeps(numbers & 0xffff) ? 0xffffu : 0u;
    const uint32_t high = keeps(numbers >> 16) ? 0xffff0000u : 0u;
    return pair & (low | high);
  }
};

}  // namespace gralora
