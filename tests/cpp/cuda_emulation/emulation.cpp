// Fibers for the threads of a block, and the host's side of the stand-in for the CUDA runtime.
#undef _FORTIFY_SOURCE  // a jump to another stack is what is meant
#include "cuda_runtime.h"

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <numeric>
#include <string>
#include <vector>

uint3 threadIdx;
uint3 blockIdx;
dim3 blockDim;
dim3 gridDim;

namespace emulation {

namespace {

constexpr size_t kStack = 64 * 1024;
constexpr int kMostThreads = 1024;
constexpr int kLanes = 32;

enum class State { runs, waits_for_block, waits_for_warp, done };

struct Fiber {
  ucontext_t start;
  jmp_buf at;
  bool started;
  State state;
  uint3 index;
};

// The lanes' values of a warp's last two exchanges.
struct Warp {
  uint64_t values[2][kLanes];
  int arrived;
  int exchanges;
};

std::mutex one_at_a_time;
std::vector<Fiber> fibers;
std::vector<Warp> warps;
unsigned char* stacks;
Fiber* running;
jmp_buf scheduler;
void (*body)(void*);
void* context;

void yield(State state) {
  running->state = state;
  if (_setjmp(running->at) == 0) _longjmp(scheduler, 1);
}

void begin() {
  body(context);
  running->state = State::done;
  _longjmp(scheduler, 1);
}

void resume(Fiber& fiber) {
  running = &fiber;
  threadIdx = fiber.index;
  fiber.state = State::runs;
  if (_setjmp(scheduler) != 0) return;
  if (!fiber.started) {
    fiber.started = true;
    setcontext(&fiber.start);
  }
  _longjmp(fiber.at, 1);
}

void prepare(unsigned threads) {
  if (!stacks) {
    void* memory = mmap(nullptr, kStack * kMostThreads, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) std::abort();
    stacks = static_cast<unsigned char*>(memory);
  }
  if (fibers.size() < threads) {
    fibers.resize(threads);
    warps.resize((threads + kLanes - 1) / kLanes);
    for (unsigned i = 0; i < threads; ++i) {
      Fiber& fiber = fibers[i];
      getcontext(&fiber.start);
      fiber.start.uc_stack.ss_sp = stacks + kStack * i;
      fiber.start.uc_stack.ss_size = kStack;
      fiber.start.uc_link = nullptr;
      makecontext(&fiber.start, begin, 0);
      fiber.index = uint3{i, 0, 0};
    }
  }
}

void run_block(unsigned threads) {
  for (unsigned i = 0; i < threads; ++i) {
    fibers[i].started = false;
    fibers[i].state = State::runs;
  }
  for (Warp& warp : warps) warp.arrived = warp.exchanges = 0;
  for (;;) {
    bool moved = false;
    unsigned done = 0;
    unsigned waiting = 0;
    for (unsigned first = 0; first < threads; first += kLanes) {
      // A warp goes on until all of its lanes wait for the block or are done.
      for (bool again = true; again;) {
        again = false;
        unsigned in_exchange = 0;
        unsigned ended = 0;
        for (unsigned i = first; i < first + kLanes && i < threads; ++i) {
          if (fibers[i].state == State::runs) {
            resume(fibers[i]);
            moved = true;
          }
          in_exchange += fibers[i].state == State::waits_for_warp;
          ended += fibers[i].state == State::done;
        }
        if (in_exchange == 0) continue;
        running = &fibers[first];
        if (in_exchange != kLanes) stop("a warp function that not all lanes of the warp reach");
        Warp& warp = warps[first / kLanes];
        warp.arrived = 0;
        ++warp.exchanges;
        for (unsigned i = first; i < first + kLanes; ++i) fibers[i].state = State::runs;
        again = true;
      }
    }
    for (unsigned i = 0; i < threads; ++i) {
      done += fibers[i].state == State::done;
      waiting += fibers[i].state == State::waits_for_block;
    }
    if (done == threads) return;
    if (waiting + done == threads && waiting > 0) {
      if (done > 0) stop("__syncthreads that not all threads of the block reach");
      for (unsigned i = 0; i < threads; ++i) fibers[i].state = State::runs;
    } else if (!moved) {
      stop("threads that wait for ever");
    }
  }
}

// The order of blocks, which results must not depend on.
unsigned block_at(unsigned place, unsigned blocks) {
  static const std::string order = std::getenv("TERNGRAD_EMULATED_ORDER") ? std::getenv("TERNGRAD_EMULATED_ORDER") : "";
  if (order == "backward") return blocks - 1 - place;
  if (order != "shuffled") return place;
  // A step that has no divisor in common with the number of blocks visits each once.
  unsigned step = blocks / 2 + 1;
  while (std::gcd(step, blocks) != 1) ++step;
  return static_cast<unsigned>(static_cast<uint64_t>(place) * step % blocks);
}

}  // namespace

void stop(const char* what) {
  std::fprintf(stderr, "CUDA emulation: block %u, thread %u: %s\n", blockIdx.x, running ? running->index.x : 0, what);
  std::abort();
}

void wait_for_block() { yield(State::waits_for_block); }

const uint64_t* exchange(unsigned mask, uint64_t value) {
  if (mask != 0xffffffffu) stop("a warp function with a mask of some lanes");
  Warp& warp = warps[threadIdx.x / kLanes];
  uint64_t* values = warp.values[warp.exchanges % 2];
  values[threadIdx.x % kLanes] = value;
  yield(State::waits_for_warp);
  return values;
}

void run(dim3 grid, dim3 block, void (*of_body)(void*), void* of_context) {
  const std::lock_guard<std::mutex> guard(one_at_a_time);
  prepare(block.x);
  body = of_body;
  context = of_context;
  gridDim = grid;
  blockDim = block;
  for (unsigned i = 0; i < grid.x; ++i) {
    blockIdx = uint3{block_at(i, grid.x), 0, 0};
    run_block(block.x);
  }
}

}  // namespace emulation

// ---- the host's side: one device, whose memory is the host's

cudaError_t cudaGetLastError() { return cudaSuccess; }

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorInvalidConfiguration: return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidDevice: return "cudaErrorInvalidDevice";
  }
  return "unknown";
}
const char* cudaGetErrorString(cudaError_t error) { return cudaGetErrorName(error); }

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidDevice; }
cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (device != 0) return cudaErrorInvalidDevice;
  *properties = cudaDeviceProp{"emulated", 0, 0, 0};
  return cudaSuccess;
}
// So little that some tiles are kept and others not, and that small buckets are few, unless a number is named.
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const char* processors = std::getenv("TERNGRAD_EMULATED_PROCESSORS");
  *value = attribute == cudaDevAttrL2CacheSize ? 1 << 20 : processors ? std::atoi(processors) : 6;
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = 0;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = 0;
  return cudaSuccess;
}
cudaError_t cudaMalloc(void** memory, size_t bytes) {
  *memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  return *memory ? cudaSuccess : cudaErrorInvalidValue;
}
cudaError_t cudaFree(void* memory) {
  std::free(memory);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  if (bytes > 0) memcpy(to, from, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  memset(to, value, bytes);
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = nullptr;
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) { return cudaSuccess; }
