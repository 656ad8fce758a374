// csrc/kernels/ptx.cuh on the emulator's machine: the same functions, without the instructions.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <type_traits>

namespace gralora::ptx {

namespace detail {

[[noreturn]] inline void fail(const char* why) {
  std::fprintf(stderr, "emulator: %s\n", why);
  std::abort();
}

/// An address in shared memory names the block of the cluster, as on a GPU; so many bytes from
/// there on are the block's.
constexpr int kRankBit = 24;
inline uint32_t offset_of(uint32_t address, size_t bytes = 1) {
  const emulator::Block& block = *emulator::current().block;
  if (address >> kRankBit != block.rank) fail("an address of another block");
  const uint32_t offset = address & ((1u << kRankBit) - 1);
  if (offset + bytes > block.shared_bytes) fail("an address beyond the block's shared memory");
  return offset;
}

inline unsigned char* at(uint32_t address, size_t bytes = 1) {
  return emulator::memory_of(*emulator::current().block) + offset_of(address, bytes);
}

/// What all lanes show of a matrix instruction, and a place to show one's own.
struct Exchange {
  emulator::Thread& thread = emulator::current();
  int turn = thread.turn;

  Exchange() { thread.turn ^= 1; }
  void wait() const { emulator::arrive_and_wait(thread.warp->barrier); }
  float (&shown(int lane) const)[emulator::kMostRegisters * 2] {
    return thread.warp->shown[turn][lane];
  }
  uint64_t& word(int lane) const { return thread.warp->words[turn][lane]; }
};

template <bool kTransposed>
void load_matrices(uint32_t (&fragment)[4], uint32_t row_address) {
  const Exchange exchange;
  const int lane = exchange.thread.lane;
  exchange.word(lane) = row_address;
  exchange.wait();
  for (int matrix = 0; matrix < 4; ++matrix) {
    uint16_t pair[2];
    for (int e = 0; e < 2; ++e) {
      const int row = kTransposed ? lane % 4 * 2 + e : lane / 4;
      const int column = kTransposed ? lane / 4 : lane % 4 * 2 + e;
      const auto address = static_cast<uint32_t>(exchange.word(matrix * 8 + row));
      std::memcpy(&pair[e], at(address, 16) + column * 2, 2);
    }
    std::memcpy(&fragment[matrix], pair, 4);
  }
}

template <class T>
void unpack(float* to, uint32_t word) {
  T low, high;
  low.bits = static_cast<uint16_t>(word);
  high.bits = static_cast<uint16_t>(word >> 16);
  to[0] = low;
  to[1] = high;
}

inline void complete(std::vector<emulator::Copy>& copies) {
  for (const emulator::Copy& copy : copies) {
    std::memset(copy.to, 0, 16);
    if (copy.bytes > 0) std::memcpy(copy.to, copy.from, static_cast<size_t>(copy.bytes));
  }
  copies.clear();
}

}  // namespace detail

inline unsigned char* dynamic_shared_memory() {
  return emulator::memory_of(*emulator::current().block);
}

inline uint32_t shared_address(const void* pointer) {
  const auto offset = static_cast<const unsigned char*>(pointer) - dynamic_shared_memory();
  return emulator::current().block->rank << detail::kRankBit | static_cast<uint32_t>(offset);
}

inline void copy_16_bytes_async(uint32_t to, const void* from, int bytes) {
  if (reinterpret_cast<uintptr_t>(from) % 16 != 0 || to % 16 != 0) detail::fail("unaligned copy");
  emulator::current().groups.back().push_back({detail::at(to, 16), from, bytes});
}

inline void commit_copies() { emulator::current().groups.emplace_back(); }

/// A copy arrives when it is waited for, and not before.
template <int kPending>
void wait_for_copies() {
  auto& groups = emulator::current().groups;
  while (groups.size() > kPending + 1) {
    detail::complete(groups.front());
    groups.erase(groups.begin());
  }
}

inline uint4 load_chunk(uint32_t from) {
  uint4 chunk;
  std::memcpy(&chunk, detail::at(from, 16), 16);
  return chunk;
}

inline uint32_t load_word(uint32_t from) {
  uint32_t word = 0;
  std::memcpy(&word, detail::at(from, 4), 4);
  return word;
}

inline void store_word(uint32_t to, uint32_t word) { std::memcpy(detail::at(to, 4), &word, 4); }

inline void store_chunk(uint32_t to, uint4 chunk) { std::memcpy(detail::at(to, 16), &chunk, 16); }

inline void load_matrices(uint32_t (&fragment)[4], uint32_t row_address) {
  detail::load_matrices<false>(fragment, row_address);
}

inline void load_matrices_transposed(uint32_t (&fragment)[4], uint32_t row_address) {
  detail::load_matrices<true>(fragment, row_address);
}

template <class T>
void multiply_add(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const detail::Exchange exchange;
  const int lane = exchange.thread.lane;
  float* const own = exchange.shown(lane);
  for (int i = 0; i < 4; ++i) detail::unpack<T>(own + 2 * i, a[i]);
  detail::unpack<T>(own + 8, b0);
  detail::unpack<T>(own + 10, b1);
  exchange.wait();
  for (int e = 0; e < 4; ++e) {
    const int row_lanes = lane / 4 * 4, column_lanes = (lane % 4 * 2 + e % 2) * 4;
    float total = 0;
    for (int k = 0; k < 16; ++k) {
      const float left = exchange.shown(row_lanes + k % 8 / 2)[(k / 8 * 2 + e / 2) * 2 + k % 2];
      const float right = exchange.shown(column_lanes + k % 8 / 2)[8 + k / 8 * 2 + k % 2];
      total += left * right;
    }
    sum[e] += total;
  }
}

inline void wait_for_earlier_kernels() {}
inline void release_next_kernel() {}

inline uint32_t cluster_rank() { return emulator::current().block->rank; }

inline void synchronize_cluster() {
  emulator::arrive_and_wait(emulator::current().cluster->barrier);
}

inline float2 load_pair_of_block(uint32_t address, uint32_t rank) {
  emulator::Block& block = emulator::current().cluster->blocks[rank];
  float2 pair;
  std::memcpy(&pair, emulator::memory_of(block) + detail::offset_of(address, 8), 8);
  return pair;
}

}  // namespace gralora::ptx
