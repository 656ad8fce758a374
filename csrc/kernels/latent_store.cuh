// How a projection's tile of sums gets to its places in the latent [outer, T, inner*s].
#pragma once

#include "kernels/block_product.cuh"
#include "kernels/project.h"

namespace gralora::project {

/// Puts sums in their places one by one. A thread holds pairs of neighbouring columns; where s is
/// even they are neighbours in memory too.
template <class T, class Tile>
struct LatentStore {
  const ProjectParams& p;
  T* latent;  // of the tile's first token and of its input block
  int tokens, column0, columns;

  __device__ void operator()(int v, int half, float first, float second) const {
    const WarpPlace<Tile> place;
    const int column = column0 + place.column + v * 8 + place.lane % 4 * 2;
    const int token = place.row + half * 8 + place.lane / 4;
    if (column >= columns || token >= tokens) return;
    const int q = column / p.s;
    T* const to = latent + q * p.latent_plane + (column - q * p.s) + token * p.latent_pitch;
    const T values[2] = {T(first * p.scaling), T(second * p.scaling)};
    if (p.s % 2 == 0) {
      *reinterpret_cast<Pair<T>*>(to) = {values[0], values[1]};
      return;
    }
    to[0] = values[0];
    if (column + 1 < columns) {
      const int q1 = (column + 1) / p.s;
      latent[q1 * p.latent_plane + (column + 1 - q1 * p.s) + token * p.latent_pitch] = values[1];
    }
  }
};

/// A whole tile of sums, which the threads that `holds` is true for have. Where blocks are whole
/// chunks, by way of shared memory: a store of 16 bytes per thread leaves no half-written sector of
/// 32 bytes, and each thread has one column, whose q it works out once. Measured on an H100, 8192
/// tokens and 64 columns: 4 us, pair by pair 8 to 9.
template <class T, class Tile>
__device__ void store_latent(const Sums<Tile>& sums, bool holds, unsigned char* shared,
                             const LatentStore<T, Tile>& store) {
  const ProjectParams& p = store.p;
  if (p.s % kChunk != 0) {
    if (holds) for_each_pair(sums, store);
    return;
  }
  constexpr int kPitch = Tile::kColumns + kChunk;  // eight rows of pairs meet in no bank
  static_assert(Tile::kExchangeBytes + Tile::kRows * kPitch * 2 <= Tile::kSharedBytes);
  T* const staged = reinterpret_cast<T*>(shared + Tile::kExchangeBytes);
  if (holds) {
    const WarpPlace<Tile> place;
    T* const mine =
        staged + (place.row + place.lane / 4) * kPitch + place.column + place.lane % 4 * 2;
    for_each_pair(sums, [&](int v, int half, float first, float second) {
      *reinterpret_cast<Pair<T>*>(mine + half * 8 * kPitch + v * 8) = {T(first * p.scaling),
                                                                       T(second * p.scaling)};
    });
  }
  Tile::synchronize();
  constexpr int kChunks = Tile::kColumns / kChunk;
  constexpr int kRowsAtOnce = Tile::kThreads / kChunks;
  const int chunk = static_cast<int>(threadIdx.x) % kChunks * kChunk;
  const int column = store.column0 + chunk;
  if (column >= store.columns) return;
  const int q = column / p.s;
  T* const latent = store.latent + q * p.latent_plane + (column - q * p.s);
  for (int token = static_cast<int>(threadIdx.x) / kChunks; token < store.tokens;
       token += kRowsAtOnce) {
    *reinterpret_cast<uint4*>(latent + token * p.latent_pitch) =
        *reinterpret_cast<const uint4*>(staged + token * kPitch + chunk);
  }
}

}  // namespace gralora::project
