#undef _FORTIFY_SOURCE  // a jump to another stack is what is meant
#include "fibers.h"

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <numeric>
#include <random>
#include <string>
#include <vector>

namespace emulation {

Index thread_index;
Index block_index;
Index block_size;
Index grid_size;
unsigned place;

namespace {

constexpr size_t kStack = 64 * 1024;
constexpr int kMostWaits = 1 << 20;  // for other blocks, of a launch

enum class State { runs, waits_for_block, waits_for_warp, done };

struct Fiber {
  ucontext_t start;
  jmp_buf at;
  bool started;
  State state;
  const void* where;
};

// The lanes' values of a warp's last two exchanges.
struct Warp {
  uint64_t values[2][kLanes];
  int exchanges;
};

struct Block {
  bool live = false;
  unsigned index = 0;
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
};

// As TERNGRAD_EMULATED_ORDER says.
struct Order {
  std::string name;
  unsigned seed = 1;

  static const Order& chosen() {
    static const Order order = [] {
      const char* text = std::getenv("TERNGRAD_EMULATED_ORDER");
      Order found{text ? text : "forward", 1};
      const size_t colon = found.name.find(':');
      if (colon != std::string::npos) {
        found.seed = static_cast<unsigned>(std::atoi(found.name.c_str() + colon + 1));
        found.name.resize(colon);
      }
      return found;
    }();
    return order;
  }

  // Which block comes at a place of the order. Results must not depend on it.
  unsigned block_at(unsigned at, unsigned blocks) const {
    if (name == "backward") return blocks - 1 - at;
    if (name != "shuffled") return at;
    // A step that has no divisor in common with the number of blocks visits each once.
    unsigned by = blocks / 2 + 1;
    while (std::gcd(by, blocks) != 1) ++by;
    return static_cast<unsigned>(static_cast<uint64_t>(at) * by % blocks);
  }
};

std::mutex one_at_a_time;
Block places[kMostPlaces];
unsigned char* stacks;
Fiber* running;
jmp_buf scheduler;
void (*body)(void*);
void* context;
Watcher* watcher;
bool mixed;
int waits;
std::mt19937 numbers;

unsigned chance_below(unsigned n) { return static_cast<unsigned>(numbers() % n); }

void yield(State state) {
  running->state = state;
  if (_setjmp(running->at) == 0) _longjmp(scheduler, 1);
}

void begin() {
  body(context);
  running->state = State::done;
  _longjmp(scheduler, 1);
}

// The thread, or for what follows the block, that is spoken of.
void look_at(unsigned of_place, unsigned thread) {
  place = of_place;
  block_index = Index{places[place].index, 0, 0};
  thread_index = Index{thread, 0, 0};
  running = &places[place].fibers[thread];
}

void resume(unsigned of_place, unsigned thread) {
  look_at(of_place, thread);
  running->state = State::runs;
  if (_setjmp(scheduler) != 0) return;
  if (!running->started) {
    running->started = true;
    setcontext(&running->start);
  }
  _longjmp(running->at, 1);
}

unsigned char* stack_at(unsigned of_place, unsigned thread) {
  return stacks + kStack * (of_place * kMostThreads + thread);
}

void prepare(unsigned of_place, unsigned threads) {
  if (!stacks) {
    void* memory = mmap(nullptr, kStack * kMostThreads * kMostPlaces, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) std::abort();
    stacks = static_cast<unsigned char*>(memory);
  }
  Block& block = places[of_place];
  if (block.fibers.size() >= threads) return;
  block.fibers.resize(threads);
  block.warps.resize((threads + kLanes - 1) / kLanes);
  for (unsigned i = 0; i < threads; ++i) {
    ucontext_t& start = block.fibers[i].start;
    getcontext(&start);
    start.uc_stack.ss_sp = stack_at(of_place, i);
    start.uc_stack.ss_size = kStack;
    start.uc_link = nullptr;
    makecontext(&start, begin, 0);
  }
}

void start(unsigned of_place, unsigned index, unsigned threads) {
  prepare(of_place, threads);
  Block& block = places[of_place];
  block.live = true;
  block.index = index;
  for (unsigned i = 0; i < threads; ++i) {
    block.fibers[i].started = false;
    block.fibers[i].state = State::runs;
  }
  for (Warp& warp : block.warps) warp.exchanges = 0;
  look_at(of_place, 0);
  if (watcher) watcher->block_begins();
}

// Lets the lanes of a warp go on, each until it waits. If now all of them are at a warp function, they have met.
bool advance_warp(unsigned of_place, unsigned first, unsigned threads) {
  Block& block = places[of_place];
  const unsigned lanes = threads - first < kLanes ? threads - first : kLanes;
  const unsigned shift = mixed ? chance_below(lanes) : 0;
  bool moved = false;
  unsigned in_exchange = 0;
  for (unsigned i = 0; i < lanes; ++i) {
    const unsigned thread = first + (i + shift) % lanes;
    if (block.fibers[thread].state == State::runs) {
      resume(of_place, thread);
      moved = true;
    }
    in_exchange += block.fibers[thread].state == State::waits_for_warp;
  }
  if (in_exchange == 0) return moved;
  unsigned elsewhere = 0;
  for (unsigned i = first; i < first + lanes; ++i) elsewhere += block.fibers[i].state == State::runs;
  if (elsewhere > 0) return moved;
  look_at(of_place, first);
  if (in_exchange != kLanes) stop("a warp function that not all lanes of the warp reach");
  ++block.warps[first / kLanes].exchanges;
  for (unsigned i = first; i < first + kLanes; ++i) {
    if (block.fibers[i].where != block.fibers[first].where) stop("lanes that meet at different warp functions");
    block.fibers[i].state = State::runs;
  }
  if (watcher) watcher->warp_meets();
  return true;
}

// Where all threads wait for the block they have met; where all are done it ends.
bool advance_block(unsigned of_place, unsigned threads) {
  Block& block = places[of_place];
  unsigned done = 0;
  unsigned waiting = 0;
  for (unsigned i = 0; i < threads; ++i) {
    done += block.fibers[i].state == State::done;
    waiting += block.fibers[i].state == State::waits_for_block;
  }
  if (done == threads) block.live = false;
  if (waiting + done < threads || waiting == 0) return done == threads;
  look_at(of_place, 0);
  if (done > 0) stop("__syncthreads that not all threads of the block reach");
  for (unsigned i = 0; i < threads; ++i) {
    if (block.fibers[i].where != block.fibers[0].where) stop("threads that meet at different __syncthreads");
    block.fibers[i].state = State::runs;
  }
  if (watcher) watcher->block_meets();
  return true;
}

void run_block(unsigned threads) {
  while (places[0].live) {
    bool moved = false;
    for (unsigned first = 0; first < threads; first += kLanes) {
      // A warp goes on until all of its lanes wait for the block or are done.
      while (advance_warp(0, first, threads)) moved = true;
    }
    moved |= advance_block(0, threads);
    if (!moved) stop("threads that wait for ever");
  }
}

void run_mixed(unsigned blocks, unsigned threads) {
  numbers.seed(Order::chosen().seed);
  unsigned begun = 0;
  for (;;) {
    unsigned live = 0;
    for (unsigned i = 0; i < kMostPlaces; ++i) {
      if (!places[i].live && begun < blocks) start(i, begun++, threads);
      live += places[i].live;
    }
    if (live == 0) return;
    // Some turns of some warps; then every warp has one, so that nobody starves and it shows when all wait.
    for (unsigned i = 0; i < 64; ++i) {
      const unsigned at = chance_below(kMostPlaces);
      if (places[at].live) advance_warp(at, chance_below((threads + kLanes - 1) / kLanes) * kLanes, threads);
    }
    bool moved = false;
    for (unsigned i = 0; i < kMostPlaces; ++i) {
      if (!places[i].live) continue;
      for (unsigned first = 0; first < threads; first += kLanes) moved |= advance_warp(i, first, threads);
      moved |= advance_block(i, threads);
    }
    if (!moved) stop("threads that wait for ever");
  }
}

}  // namespace

void stop(const char* what) {
  std::fprintf(stderr, "CUDA emulation: block %u, thread %u: %s\n", block_index.x, thread_index.x, what);
  std::abort();
}

void wait_for_block(const void* where) {
  running->where = where;
  yield(State::waits_for_block);
}

const uint64_t* exchange(unsigned mask, uint64_t value, const void* where) {
  if (mask != 0xffffffffu) stop("a warp function with a mask of some lanes");
  Warp& warp = places[place].warps[thread_index.x / kLanes];
  uint64_t* values = warp.values[warp.exchanges % 2];
  values[thread_index.x % kLanes] = value;
  running->where = where;
  yield(State::waits_for_warp);
  return values;
}

void step() {
  if (mixed) yield(State::runs);
}

void wait_for_others() {
  if (!mixed) stop("waits for a block that runs later");
  if (++waits > kMostWaits) stop("waits for ever for another block");
  yield(State::runs);
}

Range stack_of_thread() {
  const unsigned char* begin = stack_at(place, thread_index.x);
  return Range{begin, begin + kStack};
}

bool is_on_a_stack(const void* address) {
  const auto* at = static_cast<const unsigned char*>(address);
  return at >= stacks && at < stacks + kStack * kMostThreads * kMostPlaces;
}

void run(Index grid, Index block, void (*of_body)(void*), void* of_context, bool mixes, Watcher* of_watcher) {
  const std::lock_guard<std::mutex> guard(one_at_a_time);
  body = of_body;
  context = of_context;
  watcher = of_watcher;
  grid_size = grid;
  block_size = block;
  mixed = mixes && Order::chosen().name == "mixed";
  waits = 0;
  if (mixed) return run_mixed(grid.x, block.x);
  for (unsigned i = 0; i < grid.x; ++i) {
    start(0, Order::chosen().block_at(i, grid.x), block.x);
    run_block(block.x);
  }
}

}  // namespace emulation
