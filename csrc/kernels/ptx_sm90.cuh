// The PTX instructions that only compute capability 9.0a has, one function each: barriers in shared
// memory that count the bytes of bulk copies, bulk copies of a tensor's boxes, products of whole
// warpgroups. For the files *_sm90.cu, beside ptx.cuh.
#pragma once

#include <cuda.h>

#include "kernels/ptx.cuh"

namespace gralora::ptx {

/// A barrier in shared memory; a phase of it ends after so many arrivals.
__device__ inline void make_barrier(uint32_t barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

/// Shows this thread's new barriers to copies and other threads, after a barrier of the block.
__device__ inline void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ inline void arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

/// Arrives, and keeps the phase from ending before so many bytes have been copied.
__device__ inline void arrive_and_expect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

/// Returns when the barrier's phase of this parity has ended.
__device__ inline void wait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n\t.reg .pred ended;\n"
      "again:\n\t"
      "mbarrier.try_wait.parity.shared::cta.b64 ended, [%0], %1;\n\t"
      "@!ended bra again;\n\t}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

/// Waits for the block's first kThreads threads, warps as a whole.
template <int kThreads>
__device__ void synchronize_threads() {
  asm volatile("bar.sync 1, %0;" ::"n"(kThreads) : "memory");
}

__device__ inline void prefetch_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

/// The box that begins at (inner, middle, outer), the contiguous axis first, to shared memory; its
/// bytes count for the barrier.
__device__ inline void copy_box(uint32_t to, const CUtensorMap* map, int inner, int middle,
                                int outer, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3, %4}], [%5];" ::"r"(to),
      "l"(map), "r"(inner), "r"(middle), "r"(outer), "r"(barrier)
      : "memory");
}

/// Orders what this warpgroup's registers and shared memory hold before products that use them.
__device__ inline void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ inline void commit_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/// Returns when all committed products are done.
__device__ inline void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
}

/// A product's view of a part of 64 x 64 elements, at `depth`: rows of 128 bytes, swizzled in
/// groups of eight, 1024 bytes apart. Where the depth is contiguous it lies along the 128 bytes.
template <bool kDepthIsContiguous>
__device__ uint64_t describe_part(uint32_t part, int depth) {
  constexpr uint64_t kGroupStride = 1024 / 16, kSwizzle128 = 1;
  const uint32_t at = part + depth * (kDepthIsContiguous ? 2 : 128);
  return uint64_t{(at & 0x3ffff) / 16} | kGroupStride << 32 | kSwizzle128 << 62;
}

// The sums of 32 columns as operands of an assembly statement.
#define GRALORA_SUMS_OF_8(v) "+f"(sum[v][0]), "+f"(sum[v][1]), "+f"(sum[v][2]), "+f"(sum[v][3])
#define GRALORA_SUMS_OF_32(v) \
  GRALORA_SUMS_OF_8(v), GRALORA_SUMS_OF_8(v + 1), GRALORA_SUMS_OF_8(v + 2), GRALORA_SUMS_OF_8(v + 3)
#define GRALORA_MULTIPLY_32(type)                                                \
  asm volatile(                                                                  \
      "{\n\t.reg .pred add;\n\tsetp.ne.b32 add, 1, 0;\n\t"                       \
      "wgmma.mma_async.sync.aligned.m64n32k16.f32." type "." type                \
      " "                                                                        \
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, " \
      "%16, %17, add, 1, 1, %18, %19;\n\t}"                                      \
      : GRALORA_SUMS_OF_32(0)                                                    \
      : "l"(left), "l"(right), "n"(kLeftAlongRows), "n"(kRightAlongRows))
#define GRALORA_MULTIPLY_64(type)                                               \
  asm volatile(                                                                 \
      "{\n\t.reg .pred add;\n\tsetp.ne.b32 add, 1, 0;\n\t"                      \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type               \
      " "                                                                       \
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, "  \
      "%30, %31}, %32, %33, add, 1, 1, %34, %35;\n\t}"                          \
      : GRALORA_SUMS_OF_32(0), GRALORA_SUMS_OF_32(4)                            \
      : "l"(left), "l"(right), "n"(kLeftAlongRows), "n"(kRightAlongRows))

/// sum += left right for 64 rows, 32 or 64 columns and a depth of 16, by a whole warpgroup: a
/// thread holds the pairs of mma.sync's fragments. The sums are in use until wait_for_products().
template <class T, int kColumns, bool kLeftDepth, bool kRightDepth>
__device__ void multiply_add_parts(float (*sum)[4], uint64_t left, uint64_t right) {
  static_assert(kColumns == 32 || kColumns == 64);
  constexpr int kLeftAlongRows = kLeftDepth ? 0 : 1, kRightAlongRows = kRightDepth ? 0 : 1;
  constexpr bool kIsBFloat16 = std::is_same_v<T, __nv_bfloat16>;
  if constexpr (kColumns == 32 && kIsBFloat16) {
    GRALORA_MULTIPLY_32("bf16");
  } else if constexpr (kColumns == 32) {
    GRALORA_MULTIPLY_32("f16");
  } else if constexpr (kIsBFloat16) {
    GRALORA_MULTIPLY_64("bf16");
  } else {
    GRALORA_MULTIPLY_64("f16");
  }
}

#undef GRALORA_MULTIPLY_64
#undef GRALORA_MULTIPLY_32
#undef GRALORA_SUMS_OF_32
#undef GRALORA_SUMS_OF_8

}  // namespace gralora::ptx
