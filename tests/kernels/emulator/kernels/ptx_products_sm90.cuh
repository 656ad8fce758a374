// csrc/kernels/ptx_products_sm90.cuh on the emulator's machine: a thread works out its own sums
// from the operands in shared memory.
#pragma once

#include "kernels/ptx_sm90.cuh"

namespace gralora::ptx {

namespace detail {

/// Element (row or column `extent`, `depth`) of an operand: rows of 128 bytes, swizzled, groups of
/// eight 1024 bytes apart; parts of 64 columns 8192 bytes apart.
template <class T, bool kDepthIsContiguous>
float read_operand(const unsigned char* memory, uint64_t operand, int extent, int depth) {
  const int bytes = kDepthIsContiguous
                        ? extent / 8 * 1024 + extent % 8 * 128 + depth * 2
                        : extent / 64 * 8192 + depth / 8 * 1024 + depth % 8 * 128 + extent % 64 * 2;
  T element;
  std::memcpy(&element, memory + swizzle(static_cast<uint32_t>(operand) + bytes), sizeof(T));
  return static_cast<float>(element);
}

}  // namespace detail

template <class T, int kColumns, bool kLeftDepth, bool kRightDepth>
void multiply_add_parts(float (*sum)[4], uint64_t left, uint64_t right, int adds = 1) {
  constexpr int kDepth = 16;
  emulator::Thread& thread = emulator::current();
  const unsigned char* const memory = dynamic_shared_memory();
  const int warp = static_cast<int>(thread.index.x) / 32 % 4, lane = thread.lane;
  thread.products.back().push_back([=] {
    float rows[2][kDepth];
    for (int half = 0; half < 2; ++half) {
      for (int k = 0; k < kDepth; ++k) {
        rows[half][k] =
            detail::read_operand<T, kLeftDepth>(memory, left, warp * 16 + half * 8 + lane / 4, k);
      }
    }
    for (int v = 0; v < kColumns / 8; ++v) {
      for (int e = 0; e < 2; ++e) {
        float total[2] = {};
        for (int k = 0; k < kDepth; ++k) {
          const float column =
              detail::read_operand<T, kRightDepth>(memory, right, v * 8 + lane % 4 * 2 + e, k);
          for (int half = 0; half < 2; ++half) total[half] += rows[half][k] * column;
        }
        for (int half = 0; half < 2; ++half) {
          float& own = sum[v][half * 2 + e];
          own = (adds != 0 ? own : 0.0f) + total[half];
        }
      }
    }
  });
}

}  // namespace gralora::ptx
