// The threads of blocks, as fibers of the thread that launches: they take turns where they meet. What stands in for
// CUDA (cuda_runtime.h, which builds the kernels' source, and ../ptx, which runs their PTX) runs kernels with it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace emulation {

struct Index {
  unsigned x, y, z;
};

// Of the thread that runs.
extern Index thread_index;
extern Index block_index;
extern Index block_size;
extern Index grid_size;
extern unsigned place;  // of its block, among the blocks that are under way

constexpr unsigned kLanes = 32;
constexpr unsigned kMostThreads = 1024;  // of a block
constexpr unsigned kMostPlaces = 6;

// Told what happens in a launch.
class Watcher {
 public:
  virtual void block_begins() {}
  virtual void block_meets() {}
  virtual void warp_meets() {}

 protected:
  ~Watcher() = default;
};

// Runs `body` once for each thread of each block, and returns when all are done. TERNGRAD_EMULATED_ORDER is the order:
// forward, backward or shuffled, one block after the other; or, where `mixes`, mixed or mixed:SEED, in which the warps
// of several blocks go on in an order of chance wherever they wait, and at every step().
void run(Index grid, Index block, void (*body)(void*), void* context, bool mixes = false, Watcher* watcher = nullptr);

// Waits for all threads of the block. All must name the same place of the kernel.
void wait_for_block(const void* where = nullptr);
// Every lane of the warp gives eight bytes; all of them come back, in a place that the next but one call reuses.
const uint64_t* exchange(unsigned mask, uint64_t value, const void* where = nullptr);
// Others may run.
void step();
// The thread waits for another block.
void wait_for_others();

[[noreturn]] void stop(const char* what);

// The device's memory: what nobody has written, and what the host has.
void allocated(const void* at, size_t bytes);
void written(const void* at, size_t bytes);

struct Range {
  const unsigned char* begin;
  const unsigned char* end;
};
Range stack_of_thread();
bool is_on_a_stack(const void* address);  // of any thread

}  // namespace emulation
