// Host and device: every function of csrc/contract compiles for both, so that the contract is written once.
//
// `static` + always_inline keeps each translation unit's own copy: a plain `inline` copy compiled with -mavx2 could
// be the one the linker keeps for the scalar path, which is an illegal instruction on an old processor.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__CUDACC__)
#define TERNGRAD_CONTRACT static __host__ __device__ __forceinline__
#else
#define TERNGRAD_CONTRACT static inline __attribute__((always_inline))
#endif

#if defined(__FAST_MATH__)
#error "terngrad_kernels needs IEEE arithmetic: build without -ffast-math"
#endif
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "terngrad_kernels writes little-endian messages straight from memory: big-endian machines are not supported"
#endif
