// A GPU in software, for checks where there is none: the threads of two clusters of blocks at a
// time are fibers of one host thread, which change at every instruction that they have to reach
// together.
//
// What it shows: results, indices, barriers that not all threads reach, data that is read before
// its asynchronous copy was waited for. What it cannot show: time, races within a barrier's
// interval, fences that are missing, and kernels that overlap: each is done before the next begins.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <vector>

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// Of the thread that runs.
inline dim3 threadIdx, blockIdx, gridDim;

namespace emulator {

inline constexpr int kWarpSize = 32;
inline constexpr int kMostRegisters = 8;  // that a thread shows its warp at once

/// Threads that wait for each other. Those that have ended are no longer waited for.
struct Barrier {
  int threads = 0, arrived = 0;
  uint64_t round = 0;
};

struct Warp {
  Barrier barrier;
  // What lanes show each other; two sets in turn, so that a fast lane does not overwrite what a
  // slow one has not read yet.
  float shown[2][kWarpSize][kMostRegisters * 2];
  uint64_t words[2][kWarpSize];
};

/// A barrier in shared memory that counts bytes as well as arrivals. What is on its way to it comes
/// at once or not before somebody waits, in turn: so both what is overwritten too early and what is
/// read too early shows.
struct ByteBarrier {
  int expected = 0, pending = 0;  // arrivals
  int64_t bytes = 0;              // announced and not there yet
  uint64_t phase = 0;
  std::vector<std::function<void()>> on_their_way;

  void settle();
};

struct Block {
  dim3 index;
  uint32_t rank = 0;      // in the cluster
  Barrier barrier, part;  // of all threads, of the first ones
  Barrier warpgroups[8];
  std::map<uint32_t, ByteBarrier> byte_barriers;  // by their addresses
  std::vector<Warp> warps;
  std::unique_ptr<unsigned char[]> shared;
  size_t shared_bytes = 0;
};

struct Cluster {
  Barrier barrier;
  std::vector<Block> blocks;
};

/// A 16-byte copy that was started and not waited for.
struct Copy {
  void* to;
  const void* from;
  int bytes;
};

struct Thread {
  dim3 index;
  Cluster* cluster = nullptr;
  Block* block = nullptr;
  Warp* warp = nullptr;
  int lane = 0;
  int turn = 0;  // which of the warp's sets of registers is shown next
  bool ended = false;
  std::vector<std::vector<Copy>> groups{1};  // the last one is still open
  // Products of a warpgroup in groups, and boxes under way to global memory: done when waited for.
  std::vector<std::vector<std::function<void()>>> products{1};
  std::vector<std::function<void()>> boxes;
};

/// The thread that runs.
Thread& current();

/// Where a block's shared memory begins.
unsigned char* memory_of(Block& block);

/// Lets another thread run, while this one cannot go on.
void give_way();

/// Returns when all threads of the barrier that have not ended are there.
void arrive_and_wait(Barrier& barrier);

/// Runs `kernel` once for each thread of the grid, two clusters of blocks at a time.
void run_grid(dim3 grid, unsigned threads, size_t shared_bytes, unsigned cluster,
              const std::function<void()>& kernel);

}  // namespace emulator
