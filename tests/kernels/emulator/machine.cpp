#include "machine.h"

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace emulator {
namespace {

constexpr size_t kStackBytes = 128 << 10;
// Stacks lie at multiples of a page, and all threads are at the same depth of theirs: without these
// steps between their beginnings they would share a few lines of the caches.
constexpr size_t kStackStep = 1088, kStackSteps = 61;
constexpr size_t kAlignment = 1024;

// The GPU has room for so many clusters at once: enough to show what they do to each other.
constexpr size_t kClustersTogether = 2;

/// A fiber, which runs one thread after another: its first start needs a context with a stack,
/// every later change is a long jump, which asks the system for nothing.
struct Fiber {
  Thread thread;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  jmp_buf state;
  bool started = false;
};

struct Scheduler {
  std::vector<std::unique_ptr<Fiber>> fibers;
  size_t running = 0, alive = 0;
  uint64_t changes_without_progress = 0;
  jmp_buf home;
  const std::function<void()>* kernel = nullptr;
};

Scheduler scheduler;

void leave(Barrier& barrier) {
  --barrier.threads;
  if (barrier.threads > 0 && barrier.arrived == barrier.threads) {
    barrier.arrived = 0;
    ++barrier.round;
  }
}

void run_thread() {
  (*scheduler.kernel)();
  Thread& thread = current();
  thread.ended = true;
  leave(thread.warp->barrier);
  leave(thread.block->barrier);
  leave(thread.cluster->barrier);
  scheduler.changes_without_progress = 0;
  --scheduler.alive;
}

void enter_fiber() {
  while (true) {
    run_thread();
    // The next thread of this fiber goes on here.
    if (_setjmp(scheduler.fibers[scheduler.running]->state) == 0) _longjmp(scheduler.home, 1);
  }
}

[[noreturn]] void resume(Fiber& fiber) {
  threadIdx = fiber.thread.index;
  blockIdx = fiber.thread.block->index;
  if (fiber.started) _longjmp(fiber.state, 1);
  fiber.started = true;
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = fiber.stack.get();
  context.uc_stack.ss_size = kStackBytes - scheduler.running % kStackSteps * kStackStep;
  context.uc_link = nullptr;
  makecontext(&context, enter_fiber, 0);
  setcontext(&context);
  std::abort();
}

/// Lets the next thread that has not ended go on.
void change() {
  Fiber& self = *scheduler.fibers[scheduler.running];
  if (_setjmp(self.state) != 0) return;
  if (++scheduler.changes_without_progress > 4 * scheduler.fibers.size()) {
    std::fprintf(stderr, "emulator: every thread waits at a barrier that others do not reach\n");
    std::abort();
  }
  do {
    scheduler.running = (scheduler.running + 1) % scheduler.fibers.size();
  } while (scheduler.fibers[scheduler.running]->thread.ended);
  resume(*scheduler.fibers[scheduler.running]);
}

void run_until_all_have_ended() {
  _setjmp(scheduler.home);
  while (scheduler.alive > 0) {
    while (scheduler.fibers[scheduler.running]->thread.ended) {
      scheduler.running = (scheduler.running + 1) % scheduler.fibers.size();
    }
    resume(*scheduler.fibers[scheduler.running]);
  }
}

Cluster make_cluster(dim3 first, unsigned size, unsigned threads, size_t shared_bytes) {
  Cluster cluster;
  cluster.barrier.threads = static_cast<int>(size * threads);
  cluster.blocks.resize(size);
  for (unsigned rank = 0; rank < size; ++rank) {
    Block& block = cluster.blocks[rank];
    block.index = {first.x + rank, first.y, first.z};
    block.rank = rank;
    block.barrier.threads = static_cast<int>(threads);
    block.warps.resize((threads + kWarpSize - 1) / kWarpSize);
    for (unsigned t = 0; t < threads; ++t) ++block.warps[t / kWarpSize].barrier.threads;
    block.shared.reset(new unsigned char[shared_bytes + kAlignment]);
    block.shared_bytes = shared_bytes;
    std::memset(block.shared.get(), 0xff, shared_bytes + kAlignment);  // NaN in every format
  }
  return cluster;
}

}  // namespace

unsigned char* memory_of(Block& block) {
  const auto address = reinterpret_cast<uintptr_t>(block.shared.get());
  return reinterpret_cast<unsigned char*>((address + kAlignment - 1) / kAlignment * kAlignment);
}

void ByteBarrier::settle() {
  if (pending > 0 || bytes != 0) return;
  ++phase;
  pending = expected;
  scheduler.changes_without_progress = 0;
}

void give_way() { change(); }

Thread& current() { return scheduler.fibers[scheduler.running]->thread; }

void arrive_and_wait(Barrier& barrier) {
  const uint64_t round = barrier.round;
  if (++barrier.arrived == barrier.threads) {
    barrier.arrived = 0;
    ++barrier.round;
    scheduler.changes_without_progress = 0;
    return;
  }
  while (barrier.round == round) change();
}

void run_grid(dim3 grid, unsigned threads, size_t shared_bytes, unsigned cluster_size,
              const std::function<void()>& kernel) {
  scheduler.kernel = &kernel;
  gridDim = grid;
  const size_t of_cluster = size_t{cluster_size} * threads;
  const size_t clusters = size_t{grid.x} / cluster_size * grid.y;
  for (size_t first = 0; first < clusters; first += kClustersTogether) {
    const size_t count = std::min(clusters - first, kClustersTogether);
    while (scheduler.fibers.size() < count * of_cluster) {
      scheduler.fibers.push_back(std::make_unique<Fiber>());
    }
    scheduler.fibers.resize(count * of_cluster);
    std::vector<Cluster> together;
    for (size_t c = first; c < first + count; ++c) {
      const size_t x = c * cluster_size;
      together.push_back(
          make_cluster({static_cast<unsigned>(x % grid.x), static_cast<unsigned>(x / grid.x)},
                       cluster_size, threads, shared_bytes));
    }
    for (size_t f = 0; f < count * of_cluster; ++f) {
      Fiber& fiber = *scheduler.fibers[f];
      fiber.thread = Thread{};
      fiber.thread.index = {static_cast<unsigned>(f % threads)};
      fiber.thread.cluster = &together[f / of_cluster];
      fiber.thread.block = &fiber.thread.cluster->blocks[f % of_cluster / threads];
      fiber.thread.warp = &fiber.thread.block->warps[f % threads / kWarpSize];
      fiber.thread.lane = static_cast<int>(f % kWarpSize);
    }
    // The last one first: what a cluster waits for may be a later one's work.
    scheduler.running = (count - 1) * of_cluster;
    scheduler.alive = count * of_cluster;
    scheduler.changes_without_progress = 0;
    run_until_all_have_ended();
  }
}

}  // namespace emulator
