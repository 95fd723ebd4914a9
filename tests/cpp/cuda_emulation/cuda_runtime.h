// A stand-in for the CUDA runtime: the very same .cu files, built by the host's compiler, run here. For tests on
// machines without a GPU, and of what no GPU shows: every thread's accesses are the host's, so that its sanitizers and
// guard pages see them; barriers that not all threads reach stop the program.
//
// A block's threads are fibers of the calling thread, which take turns where they meet: __syncthreads, warp functions.
// Blocks run one after the other, in an order that TERNGRAD_EMULATED_ORDER sets (forward, backward, shuffled); memory
// is the host's; streams do nothing, since every launch has run when it returns. What it cannot show: races between
// blocks or within warps, memory order, and anything about speed.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include <type_traits>

#include "fibers.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
// One block runs at a time, and one thread of the host at a time runs blocks.
#define __shared__ static

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned of_x = 1, unsigned of_y = 1, unsigned of_z = 1) : x(of_x), y(of_y), z(of_z) {}
};
struct uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

typedef struct CUstream_st* cudaStream_t;

// CUDA's numbers.
typedef enum cudaError {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInvalidDevice = 101
} cudaError_t;
enum cudaMemcpyKind {
  cudaMemcpyHostToHost = 0,
  cudaMemcpyHostToDevice = 1,
  cudaMemcpyDeviceToHost = 2,
  cudaMemcpyDeviceToDevice = 3
};
enum cudaStreamCaptureMode {
  cudaStreamCaptureModeGlobal,
  cudaStreamCaptureModeThreadLocal,
  cudaStreamCaptureModeRelaxed
};
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone, cudaStreamCaptureStatusActive };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16, cudaDevAttrL2CacheSize = 38 };
constexpr unsigned cudaStreamNonBlocking = 1;
#define CUDART_VERSION 0

struct cudaDeviceProp {
  char name[256];
  int major, minor;
  size_t totalGlobalMem;
};

// The last launch's error, or that of the call, as CUDA reports them.
cudaError_t cudaGetLastError();
const char* cudaGetErrorString(cudaError_t error);
const char* cudaGetErrorName(cudaError_t error);
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaDriverGetVersion(int* version);
cudaError_t cudaRuntimeGetVersion(int* version);
cudaError_t cudaMalloc(void** memory, size_t bytes);
cudaError_t cudaFree(void* memory);
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status);
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode);

// ---- inside kernels

inline emulation::Index& threadIdx = emulation::thread_index;
inline emulation::Index& blockIdx = emulation::block_index;
inline emulation::Index& blockDim = emulation::block_size;
inline emulation::Index& gridDim = emulation::grid_size;

namespace emulation {

template <class T>
uint64_t wide_of(T value) {
  static_assert(sizeof(T) <= 8, "a lane gives eight bytes");
  uint64_t wide = 0;
  memcpy(&wide, &value, sizeof value);
  return wide;
}

}  // namespace emulation

inline void __syncthreads() { emulation::wait_for_block(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { emulation::exchange(mask, 0); }
inline void __threadfence() {}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned lanes) {
  const uint64_t* all = emulation::exchange(mask, emulation::wide_of(value));
  const int from = static_cast<int>(threadIdx.x % 32) + static_cast<int>(lanes);
  T other = value;
  if (from < 32) memcpy(&other, all + from, sizeof other);
  return other;
}

template <class T>
T __shfl_sync(unsigned mask, T value, int from) {
  const uint64_t* all = emulation::exchange(mask, emulation::wide_of(value));
  memcpy(&value, all + from, sizeof value);
  return value;
}

inline unsigned __ballot_sync(unsigned mask, bool predicate) {
  const uint64_t* all = emulation::exchange(mask, predicate ? 1 : 0);
  unsigned bits = 0;
  for (unsigned lane = 0; lane < 32; ++lane) bits |= static_cast<unsigned>(all[lane]) << lane;
  return bits;
}

inline int __any_sync(unsigned mask, bool predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, bool predicate) { return __ballot_sync(mask, predicate) == mask; }

inline int __popc(unsigned x) { return __builtin_popcount(x); }

inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((static_cast<uint64_t>(high) << 32 | low) << (shift & 31) >> 32);
}

// Toward zero; the nearest int where there is none, 0 for a NaN.
inline int __float2int_rz(float x) {
  if (x != x) return 0;
  return x >= 0x1p31f ? INT32_MAX : x < -0x1p31f ? INT32_MIN : static_cast<int>(x);
}

inline unsigned __byte_perm(unsigned x, unsigned y, unsigned places) {
  const uint64_t bytes = x | static_cast<uint64_t>(y) << 32;
  unsigned result = 0;
  for (unsigned i = 0; i < 4; ++i)
    result |= static_cast<unsigned>(bytes >> (8 * (places >> (4 * i) & 7)) & 255) << (8 * i);
  return result;
}

inline unsigned atomicExch(unsigned* at, unsigned value) {
  const unsigned before = *at;
  *at = value;
  return before;
}

// Blocks run one after the other, so what a thread waits for must have come.
inline void __nanosleep(unsigned) { emulation::wait_for_others(); }

inline unsigned atomicAdd(unsigned* at, unsigned value) {
  const unsigned before = *at;
  *at = before + value;
  return before;
}

// As the hardware does, an access of a vector stops the program where the address is not a multiple of it.
template <class T>
T __ldcs(const T* from) {
  if (reinterpret_cast<uintptr_t>(from) % sizeof(T) != 0) __builtin_trap();
  return *from;
}
template <class T>
T __ldcg(const T* from) {
  return __ldcs(from);
}
template <class T>
void __stcs(T* to, T value) {
  if (reinterpret_cast<uintptr_t>(to) % sizeof(T) != 0) __builtin_trap();
  *to = value;
}

// ---- launches

struct cudaLaunchConfig_t {
  dim3 gridDim;
  dim3 blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

template <class... Expected, class... Given>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Expected...), Given&&... arguments) {
  if (config->gridDim.x == 0 || config->blockDim.x == 0 || config->blockDim.x > 1024)
    return cudaErrorInvalidConfiguration;
  auto call = [&] { kernel(arguments...); };
  emulation::run(
      {config->gridDim.x, 1, 1}, {config->blockDim.x, 1, 1},
      [](void* context) { (*static_cast<decltype(call)*>(context))(); }, &call);
  return cudaSuccess;
}
