// csrc/kernels/ptx_products_sm90.cuh on the emulator's machine: a thread works out its own sums
// from the operands in shared memory.
#pragma once

#include <array>

#include "kernels/ptx_sm90.cuh"

namespace gralora::ptx {

namespace detail {

constexpr int kDepth = 16;

/// An operand's view, read back from its descriptor.
struct View {
  uint32_t address, part_stride, group_stride;
  uint32_t row_bytes;  // swizzled: 128 or 32

  explicit View(uint64_t descriptor)
      : address(units(descriptor)),
        part_stride(units(descriptor >> 16)),
        group_stride(units(descriptor >> 32)),
        row_bytes(descriptor >> 62 == 1 ? 128 : 32) {
    if (descriptor >> 62 != 1 && descriptor >> 62 != 3) fail("an operand swizzled otherwise");
  }

 private:
  /// 14 bits that count 16 bytes.
  static uint32_t units(uint64_t bits) { return static_cast<uint32_t>(bits & 0x3fff) * 16; }
};

/// Row or column `extent` of an operand: rows of 128 bytes or 32, in groups of eight.
template <class T, bool kDepthIsContiguous>
void read_operand(float (&to)[kDepth], const unsigned char* memory, const View& view,
                  uint32_t extent) {
  T elements[kDepth];
  const uint32_t row = view.row_bytes, columns = row / 2;
  for (uint32_t depth = 0; depth < kDepth; depth += kDepthIsContiguous ? 8 : 1) {
    const uint32_t bytes =
        kDepthIsContiguous ? extent / 8 * view.group_stride + extent % 8 * row + depth * 2
                           : extent / columns * view.part_stride + depth / 8 * view.group_stride +
                                 depth % 8 * row + extent % columns * 2;
    // The swizzle keeps 16 bytes together.
    const size_t size = kDepthIsContiguous ? 16 : 2;
    const uint32_t at = swizzle(view.address + bytes, row);
    if (at + size > emulator::current().block->shared_bytes) fail("an operand beyond the memory");
    std::memcpy(&elements[depth], memory + at, size);
  }
  for (int depth = 0; depth < kDepth; ++depth) to[depth] = static_cast<float>(elements[depth]);
}

/// Four sums, which the host adds side by side.
inline float multiply(const float (&row)[kDepth], const float (&column)[kDepth]) {
  float totals[4] = {};
  for (int k = 0; k < kDepth; k += 4) {
    for (int i = 0; i < 4; ++i) totals[i] += row[k + i] * column[k + i];
  }
  return totals[0] + totals[1] + (totals[2] + totals[3]);
}

}  // namespace detail

template <class T, int kColumns, bool kLeftDepth, bool kRightDepth>
void multiply_add_parts(float (*sum)[4], uint64_t left_descriptor, uint64_t right_descriptor,
                        int adds = 1) {
  emulator::Thread& thread = emulator::current();
  const detail::View left(left_descriptor), right(right_descriptor);
  const unsigned char* const memory = dynamic_shared_memory();
  const int warp = static_cast<int>(thread.index.x) / 32 % 4, lane = thread.lane;
  thread.products.back().push_back([=] {
    float rows[2][detail::kDepth], column[detail::kDepth];
    for (int half = 0; half < 2; ++half) {
      detail::read_operand<T, kLeftDepth>(rows[half], memory, left,
                                          warp * 16 + half * 8 + lane / 4);
    }
    for (int v = 0; v < kColumns / 8; ++v) {
      for (int e = 0; e < 2; ++e) {
        detail::read_operand<T, kRightDepth>(column, memory, right, v * 8 + lane % 4 * 2 + e);
        for (int half = 0; half < 2; ++half) {
          float& own = sum[v][half * 2 + e];
          own = (adds != 0 ? own : 0.0f) + detail::multiply(rows[half], column);
        }
      }
    }
  });
}

template <class T>
void multiply_add_narrow(float (&sum)[2][4], const uint32_t (&rows)[4], uint64_t right_descriptor,
                         int adds) {
  const detail::View right(right_descriptor);
  const unsigned char* const memory = dynamic_shared_memory();
  const detail::Exchange exchange;
  emulator::Thread& thread = exchange.thread;
  for (int i = 0; i < 4; ++i) detail::unpack<T>(exchange.shown(thread.lane) + 2 * i, rows[i]);
  exchange.wait();
  std::array<float[detail::kDepth], 2> held;
  for (int half = 0; half < 2; ++half) {
    for (int k = 0; k < detail::kDepth; ++k) {
      const int lane = thread.lane / 4 * 4 + k % 8 / 2;
      held[half][k] = exchange.shown(lane)[(k / 8 * 2 + half) * 2 + k % 2];
    }
  }
  thread.products.back().push_back([=, &sum, lane = thread.lane] {
    float column[detail::kDepth];
    for (int v = 0; v < 2; ++v) {
      for (int e = 0; e < 2; ++e) {
        detail::read_operand<T, false>(column, memory, right, v * 8 + lane % 4 * 2 + e);
        for (int half = 0; half < 2; ++half) {
          float& own = sum[v][half * 2 + e];
          own = (adds != 0 ? own : 0.0f) + detail::multiply(held[half], column);
        }
      }
    }
  });
}

}  // namespace gralora::ptx
