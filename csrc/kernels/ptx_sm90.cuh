// The PTX instructions that only compute capability 9.0a has, one function each: barriers in shared
// memory that count the bytes of bulk copies, bulk copies of a tensor's boxes, what
// surrounds the products of warpgroups (ptx_products_sm90.cuh). For the files *_sm90.cu.
#pragma once

#include <cuda.h>

#include "kernels/operand_descriptor.cuh"
#include "kernels/ptx.cuh"

namespace gralora::ptx {

/// True for one thread of a warp, always the same, whose threads are all here. Of what only that
/// one runs the compiler knows as much, unlike what stands behind a comparison with threadIdx:
/// around each bulk copy there it puts a loop over all threads that might have come.
__device__ inline bool is_elected() {
  uint32_t elected;
  asm volatile(
      "{\n\t.reg .pred this_one;\n\telect.sync _|this_one, 0xffffffff;\n\t"
      "selp.u32 %0, 1, 0, this_one;\n\t}"
      : "=r"(elected));
  return elected != 0;
}

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

/// Arrives at the barrier of the cluster's block `rank` that lies where `barrier` does in this one.
/// It passes nothing on that this thread has written, only that it and its products have read.
__device__ inline void arrive_at_block(uint32_t barrier, uint32_t rank) {
  asm volatile(
      "{\n\t.reg .b32 there;\n\tmapa.shared::cluster.u32 there, %0, %1;\n\t"
      "mbarrier.arrive.shared::cluster.b64 _, [there];\n\t}" ::"r"(barrier),
      "r"(rank)
      : "memory");
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

/// A word to where `to` lies in the cluster's block `rank`; its four bytes count for the barrier
/// there.
__device__ inline void send_word_to_block(uint32_t to, uint32_t word, uint32_t barrier,
                                          uint32_t rank) {
  asm volatile(
      "{\n\t.reg .b32 there, barrier_there;\n\t"
      "mapa.shared::cluster.u32 there, %0, %3;\n\t"
      "mapa.shared::cluster.u32 barrier_there, %2, %3;\n\t"
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.u32 [there], %1, [barrier_there];"
      "\n\t}" ::"r"(to),
      "r"(word), "r"(barrier), "r"(rank)
      : "memory");
}

/// Waits for the block's first kThreads threads, warps as a whole.
template <int kThreads>
__device__ void synchronize_threads() {
  asm volatile("bar.sync 1, %0;" ::"n"(kThreads) : "memory");
}

/// Waits for the other three warps of the warpgroup, the first or the second of those that do so.
__device__ inline void synchronize_warpgroup(int group) {
  asm volatile("bar.sync %0, 128;" ::"r"(group + 2) : "memory");
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

/// The same to all blocks of the cluster in `blocks`, a bit for each, at the same place of their
/// shared memory and with the barrier there.
__device__ inline void copy_box_to_blocks(uint32_t to, const CUtensorMap* map, int inner,
                                          int middle, int outer, uint32_t barrier,
                                          uint16_t blocks) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(to),
      "l"(map), "r"(inner), "r"(middle), "r"(outer), "r"(barrier), "h"(blocks)
      : "memory");
}

/// The box that begins at (inner, middle, outer) from shared memory, as a group of its own.
__device__ inline void store_box(const CUtensorMap* map, int inner, int middle, int outer,
                                 uint32_t from) {
  asm volatile(
      "cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%1, %2, %3}], [%4];" ::"l"(
          map),
      "r"(inner), "r"(middle), "r"(outer), "r"(from)
      : "memory");
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

/// Returns when all but so many of this thread's boxes have been read from shared memory.
template <int kPending>
__device__ void wait_for_box_reads() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}

/// Returns when all of this thread's boxes are in global memory.
__device__ inline void wait_for_boxes() {
  asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

/// Shows what this thread has written to shared memory to bulk copies.
__device__ inline void show_to_copies() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/// The same for global memory, on both sides: after the writes that another block's copies are to
/// see, and before those copies, once their time has come.
__device__ inline void show_results_to_copies() {
  asm volatile("fence.proxy.async.global;" ::: "memory");
}

/// What the counter held before; whoever asks again sees the next number. Nothing else is ordered.
__device__ inline int32_t draw_number(int32_t* counter) {
  int32_t number = 0;
  asm volatile("atom.relaxed.gpu.global.add.s32 %0, [%1], 1;"
               : "=r"(number)
               : "l"(counter)
               : "memory");
  return number;
}

/// Adds to a counter that blocks on other multiprocessors wait for, after everything that this
/// thread wrote or saw.
__device__ inline void add_to_counter(int32_t* counter, int32_t number) {
  asm volatile("red.release.gpu.global.add.s32 [%0], %1;" ::"l"(counter), "r"(number) : "memory");
}

/// Returns when the counter has come so far, with what was written before visible.
__device__ inline void wait_for_counter(const int32_t* counter, int32_t number) {
  int32_t seen = 0;
  while (true) {
    asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
    if (seen >= number) return;
    __nanosleep(32);
  }
}

/// Four 8 x 8 matrices of 16-bit elements to shared memory, as load_matrices() reads them.
__device__ inline void store_matrices(uint32_t row_address, const uint32_t (&fragment)[4]) {
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row_address),
      "r"(fragment[0]), "r"(fragment[1]), "r"(fragment[2]), "r"(fragment[3])
      : "memory");
}

/// Gives registers of this warpgroup's threads back, or takes what others have given back.
template <int kRegisters>
__device__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

/// Orders what this warpgroup's registers and shared memory hold before products that use them.
__device__ inline void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ inline void commit_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/// Returns when at most so many committed groups of products are not done.
template <int kPending>
__device__ void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

/// Keeps what reads the sums from moving above the wait before it.
__device__ inline void hold(float (&sum)[4]) {
  asm volatile("" : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])::"memory");
}

/// The same number, the warp's first thread's: what is computed from it is then known to be one for
/// all its threads, as products and bulk copies want their operands.
__device__ inline int of_warp(int number) { return __shfl_sync(~0u, number, 0); }

}  // namespace gralora::ptx
