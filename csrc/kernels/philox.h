// The dropout generator, one for every device: Philox4x32-10 (Salmon et al., SC 2011), keyed per
// call, addressed per element, so that a mask is never stored and every path draws the same one.
//
//   element e = t*N + c of the input [T, N];  group = e / 8;  lane = e % 8
//   key = the halves of seed;  counter = (halves of group, halves of offset)
//   the four output words hold eight 16-bit numbers, the lower half of a word first
//   element e is kept when number[lane] >= threshold
//
// Sixteen bits per decision make one Philox call serve eight elements: for a bandwidth-bound pass
// the generator would otherwise cost as much as the pass.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define GRALORA_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define GRALORA_HOST_DEVICE inline
#endif

namespace gralora::philox {

inline constexpr int kRounds = 10;
inline constexpr uint32_t kMultiplier0 = 0xD2511F53;
inline constexpr uint32_t kMultiplier1 = 0xCD9E8D57;
inline constexpr uint32_t kKeyStep0 = 0x9E3779B9;
inline constexpr uint32_t kKeyStep1 = 0xBB67AE85;

/// Elements that one generator call serves.
inline constexpr int kGroup = 8;

struct Words {
  uint32_t word[4];

  /// The 16-bit number of lane 0 to 7.
  GRALORA_HOST_DEVICE uint32_t number(int lane) const {
    return (word[lane / 2] >> (16 * (lane % 2))) & 0xffff;
  }
};

/// The eight numbers of one group.
GRALORA_HOST_DEVICE Words generate(uint64_t seed, uint64_t offset, uint64_t group) {
  uint32_t key0 = static_cast<uint32_t>(seed);
  uint32_t key1 = static_cast<uint32_t>(seed >> 32);
  uint32_t c0 = static_cast<uint32_t>(group);
  uint32_t c1 = static_cast<uint32_t>(group >> 32);
  uint32_t c2 = static_cast<uint32_t>(offset);
  uint32_t c3 = static_cast<uint32_t>(offset >> 32);
  for (int round = 0; round < kRounds; ++round) {
    const uint64_t a = static_cast<uint64_t>(kMultiplier0) * c0;
    const uint64_t b = static_cast<uint64_t>(kMultiplier1) * c2;
    c0 = static_cast<uint32_t>(b >> 32) ^ c1 ^ key0;
    c1 = static_cast<uint32_t>(b);
    c2 = static_cast<uint32_t>(a >> 32) ^ c3 ^ key1;
    c3 = static_cast<uint32_t>(a);
    key0 += kKeyStep0;
    key1 += kKeyStep1;
  }
  return {{c0, c1, c2, c3}};
}

/// A probability as the generator applies it.
struct DropoutRule {
  uint32_t threshold;  // numbers below it are dropped
  double scale;        // of the kept elements
};

/// Rounds p to 1/65536 and scales by the rounded probability's inverse, so that the mean is exact.
/// Only p = 1 drops everything.
inline DropoutRule make_dropout_rule(double p) {
  if (p >= 1.0) return {65536, 0.0};
  uint32_t threshold = static_cast<uint32_t>(p * 65536.0 + 0.5);
  if (threshold > 65535) threshold = 65535;
  return {threshold, 65536.0 / (65536.0 - threshold)};
}

}  // namespace gralora::philox
