// csrc/kernels/ptx_sm90.cuh on the emulator's machine: the same functions, without the
// instructions.
#pragma once

#include <cuda.h>

#include "kernels/operand_descriptor.cuh"
#include "kernels/ptx.cuh"

namespace gralora::ptx {

namespace detail {

inline emulator::ByteBarrier& barrier_at(emulator::Block& block, uint32_t address) {
  const auto found = block.byte_barriers.find(offset_of(address));
  if (found == block.byte_barriers.end()) fail("a barrier that nobody made");
  return found->second;
}
inline emulator::ByteBarrier& barrier_at(uint32_t address) {
  return barrier_at(*emulator::current().block, address);
}

inline void arrive(emulator::ByteBarrier& barrier) {
  if (--barrier.pending < 0) fail("more arrivals at a barrier than it expects");
  barrier.settle();
}

/// Where a byte of swizzled rows of so many bytes, 128 or 32, lies.
inline uint32_t swizzle(uint32_t address, uint32_t row_bytes) {
  return address ^ (address >> 7 & (row_bytes / 16 - 1)) << 4;
}

/// visit(shared address, pointer into the tensor or null, bytes) for every 16 bytes of a box.
template <class Visit>
void for_each_chunk(uint32_t box, const CUtensorMap& map, int inner, int middle, int outer,
                    const Visit& visit) {
  if (box % 128 != 0) fail("a box that does not begin with a row of 128 bytes");
  for (int row = 0; row < map.box[1]; ++row) {
    for (int chunk = 0; chunk < map.box[0] / 8; ++chunk) {
      const int64_t at = int64_t{inner} + chunk * 8;
      const bool inside =
          at < map.extents[0] && middle + row < map.extents[1] && outer < map.extents[2];
      unsigned char* const there =
          map.data + at * 2 + (middle + row) * map.strides[0] + outer * map.strides[1];
      const int bytes =
          inside ? static_cast<int>(std::min<int64_t>(map.extents[0] - at, 8)) * 2 : 0;
      const uint32_t place = box + static_cast<uint32_t>(row) * map.row_bytes + chunk * 16;
      visit(swizzle(place, map.row_bytes), inside ? there : nullptr, bytes);
    }
  }
}

inline void copy_box(emulator::Block& block, uint32_t to, const CUtensorMap* map, int inner,
                     int middle, int outer, uint32_t barrier_address) {
  emulator::ByteBarrier& barrier = barrier_at(block, barrier_address);
  unsigned char* const memory = emulator::memory_of(block);
  const uint32_t box = offset_of(to, static_cast<size_t>(map->box[0] * map->box[1] * 2));
  const auto arrive = [&barrier, memory, box, map, inner, middle, outer] {
    for_each_chunk(box, *map, inner, middle, outer,
                   [&](uint32_t address, const unsigned char* from, int bytes) {
                     std::memset(memory + address, 0, 16);
                     if (bytes > 0) std::memcpy(memory + address, from, static_cast<size_t>(bytes));
                   });
    barrier.bytes -= int64_t{map->box[0]} * map->box[1] * 2;
  };
  static bool comes_at_once = false;
  comes_at_once = !comes_at_once;
  if (comes_at_once) {
    arrive();
    barrier.settle();
  } else {
    barrier.on_their_way.push_back(arrive);
  }
}

}  // namespace detail

inline int of_warp(int number) { return __shfl_sync(~0u, number, 0); }

inline bool is_elected() { return emulator::current().lane == 0; }

inline void make_barrier(uint32_t barrier, uint32_t arrivals) {
  const auto expected = static_cast<int>(arrivals);
  emulator::current().block->byte_barriers[detail::offset_of(barrier, 8)] = {
      expected, expected, 0, 0, {}};
}

inline void publish_barriers() {}

inline void arrive(uint32_t barrier) { detail::arrive(detail::barrier_at(barrier)); }

inline void arrive_at_block(uint32_t barrier, uint32_t rank) {
  detail::arrive(detail::barrier_at(emulator::current().cluster->blocks[rank], barrier));
}

inline void arrive_and_expect(uint32_t barrier, uint32_t bytes) {
  detail::barrier_at(barrier).bytes += bytes;
  arrive(barrier);
}

inline void send_word_to_block(uint32_t to, uint32_t word, uint32_t barrier, uint32_t rank) {
  emulator::Block& block = emulator::current().cluster->blocks[rank];
  std::memcpy(emulator::memory_of(block) + detail::offset_of(to, 4), &word, 4);
  emulator::ByteBarrier& there = detail::barrier_at(block, barrier);
  there.bytes -= 4;
  there.settle();
}

inline void wait(uint32_t barrier, uint32_t parity) {
  emulator::ByteBarrier& awaited = detail::barrier_at(barrier);
  while (awaited.phase % 2 == parity) {
    if (awaited.on_their_way.empty()) {
      emulator::give_way();
      continue;
    }
    for (const auto& arrive : awaited.on_their_way) arrive();
    awaited.on_their_way.clear();
    awaited.settle();
  }
}

template <int kThreads>
void synchronize_threads() {
  emulator::Barrier& part = emulator::current().block->part;
  part.threads = kThreads;
  emulator::arrive_and_wait(part);
}

inline void synchronize_warpgroup(int) {
  const emulator::Thread& thread = emulator::current();
  emulator::Barrier& warpgroup = thread.block->warpgroups[thread.index.x / 128];
  warpgroup.threads = 128;
  emulator::arrive_and_wait(warpgroup);
}

inline void prefetch_map(const CUtensorMap*) {}

inline void copy_box(uint32_t to, const CUtensorMap* map, int inner, int middle, int outer,
                     uint32_t barrier) {
  detail::copy_box(*emulator::current().block, to, map, inner, middle, outer, barrier);
}

inline void copy_box_to_blocks(uint32_t to, const CUtensorMap* map, int inner, int middle,
                               int outer, uint32_t barrier, uint16_t blocks) {
  for (emulator::Block& block : emulator::current().cluster->blocks) {
    if (blocks >> block.rank & 1) {
      detail::copy_box(block, to, map, inner, middle, outer, barrier);
    }
  }
}

inline void store_box(const CUtensorMap* map, int inner, int middle, int outer, uint32_t from) {
  const unsigned char* const memory = dynamic_shared_memory();
  const uint32_t box = detail::offset_of(from, static_cast<size_t>(map->box[0] * map->box[1] * 2));
  emulator::current().boxes.push_back([=] {
    detail::for_each_chunk(box, *map, inner, middle, outer,
                           [&](uint32_t address, unsigned char* to, int bytes) {
                             if (bytes > 0) {
                               std::memcpy(to, memory + address, static_cast<size_t>(bytes));
                             }
                           });
  });
}

/// A box is read when it is waited for, and not before.
template <int kPending>
void wait_for_box_reads() {
  auto& boxes = emulator::current().boxes;
  while (boxes.size() > kPending) {
    boxes.front()();
    boxes.erase(boxes.begin());
  }
}

inline void wait_for_boxes() { wait_for_box_reads<0>(); }

inline void show_to_copies() {}
inline void show_results_to_copies() {}

inline int32_t draw_number(int32_t* counter) { return (*counter)++; }

inline void add_to_counter(int32_t* counter, int32_t number) { *counter += number; }

inline void wait_for_counter(const int32_t* counter, int32_t number) {
  while (*counter < number) emulator::give_way();
}

inline void store_matrices(uint32_t row_address, const uint32_t (&fragment)[4]) {
  const detail::Exchange exchange;
  const int lane = exchange.thread.lane;
  exchange.word(lane) = row_address;
  exchange.wait();
  for (int matrix = 0; matrix < 4; ++matrix) {
    const auto row = static_cast<uint32_t>(exchange.word(matrix * 8 + lane / 4));
    std::memcpy(detail::at(row, 16) + lane % 4 * 4, &fragment[matrix], 4);
  }
}

template <int kRegisters>
void give_registers() {}
template <int kRegisters>
void take_registers() {}

inline void begin_products() {}

inline void commit_products() { emulator::current().products.emplace_back(); }

/// Products are done when they are waited for, and not before.
template <int kPending>
void wait_for_products() {
  auto& groups = emulator::current().products;
  while (groups.size() > kPending + 1) {
    for (const auto& product : groups.front()) product();
    groups.erase(groups.begin());
  }
  // Each lane did its own part; the warp has done with the operands when all have.
  __syncwarp();
}

inline void hold(float (&)[4]) {}

}  // namespace gralora::ptx
