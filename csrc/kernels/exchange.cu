// latent[q, t, (p, rank)] = product[p, t, (q, rank)]: what a batched product [inner, T, outer*s]
// leaves, as the latent [outer, T, inner*s] that the next product reads.
//
// Runs of s elements change places, their bytes do not, so the kernel moves the widest word that
// divides a run and knows no element type. A thread writes the same word of kWords tokens' rows;
// neighbouring threads write neighbouring words, and read whole runs, 32 bytes for
// s = 16 in 16 bits. What it reads was just written and comes from L2.
//
// Grid: x over (token, word), y over q. No shared memory; about 70 registers, most of them
// addresses.
#include <algorithm>

#include "kernels/exchange.h"
#include "kernels/launch.cuh"

namespace gralora {
namespace {

constexpr int kThreads = 256;
constexpr int kWords = 4;  // loads in flight per thread
constexpr int64_t kMaxGridY = 65535;

template <class Word>
__global__ void __launch_bounds__(kThreads) exchange_kernel(const ExchangeParams p) {
  ptx::wait_for_earlier_kernels();
  ptx::release_next_kernel();
  const int run_words = p.run / static_cast<int>(sizeof(Word));
  const auto row_words = static_cast<uint32_t>(p.inner * run_words);
  // Word w of rows `rows_at_once` apart: the place within the row is computed once.
  const uint32_t rows_at_once = gridDim.x * kThreads / row_words;
  const uint32_t thread = blockIdx.x * kThreads + threadIdx.x;
  const uint32_t row = thread / row_words;
  if (row >= rows_at_once) return;
  const int w = static_cast<int>(thread % row_words);
  const int block = w / run_words;
  const int inside = w - block * run_words;
  const int64_t product_row = static_cast<int64_t>(p.outer) * run_words;

  for (int q = static_cast<int>(blockIdx.y); q < p.outer; q += static_cast<int>(gridDim.y)) {
    const Word* from = static_cast<const Word*>(p.product) + block * p.T * product_row +
                       static_cast<int64_t>(q) * run_words + inside;  // [inner, T, outer*run]
    char* to = static_cast<char*>(p.latent) + q * p.latent_plane +
               static_cast<int64_t>(w) * static_cast<int64_t>(sizeof(Word));
    for (int64_t t = row; t < p.T; t += int64_t{rows_at_once} * kWords) {
      Word words[kWords];
#pragma unroll
      for (int u = 0; u < kWords; ++u) {
        const int64_t token = t + u * int64_t{rows_at_once};
        if (token < p.T) words[u] = from[token * product_row];
      }
#pragma unroll
      for (int u = 0; u < kWords; ++u) {
        const int64_t token = t + u * int64_t{rows_at_once};
        if (token < p.T) *reinterpret_cast<Word*>(to + token * p.latent_pitch) = words[u];
      }
    }
  }
}

template <class Word>
cudaError_t launch(const ExchangeParams& p, cudaStream_t stream) {
  const auto row_words = static_cast<uint32_t>(p.inner * (p.run / static_cast<int>(sizeof(Word))));
  const int64_t threads = (p.T + kWords - 1) / kWords * row_words;
  // A row wider than a block still has a thread for every word.
  const int64_t least = (row_words + kThreads - 1) / kThreads;
  const int64_t blocks = std::clamp<int64_t>((threads + kThreads - 1) / kThreads, least,
                                             std::max<int64_t>(1 << 16, least));
  return start_kernel<exchange_kernel<Word>, kThreads, 0>(
      blocks, p, stream, static_cast<unsigned>(std::min<int64_t>(p.outer, kMaxGridY)));
}

}  // namespace

cudaError_t launch_exchange(const ExchangeParams& p, cudaStream_t stream) {
  if (p.T == 0) return cudaSuccess;
  const uint64_t divisors = reinterpret_cast<uint64_t>(p.product) |
                            reinterpret_cast<uint64_t>(p.latent) | static_cast<uint64_t>(p.run) |
                            static_cast<uint64_t>(p.latent_plane) |
                            static_cast<uint64_t>(p.latent_pitch);
  if (divisors % 16 == 0) return launch<uint4>(p, stream);
  if (divisors % 8 == 0) return launch<uint2>(p, stream);
  if (divisors % 4 == 0) return launch<uint32_t>(p, stream);
  return launch<uint16_t>(p, stream);
}

}  // namespace gralora
