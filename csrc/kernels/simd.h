// The instruction set that this translation unit is built for, and what all of them share. The build compiles each
// <operation>_simd.cpp once for each, with its flags and one TERNGRAD_ISA_<NAME>.
#pragma once

#include "../contract/message.h"

#define TERNGRAD_SIMD static inline __attribute__((always_inline))

#if defined(TERNGRAD_ISA_AVX2)
#include "simd_avx2.h"
#define TERNGRAD_ISA avx2
#elif defined(TERNGRAD_ISA_AVX512)
#include "simd_avx512.h"
#define TERNGRAD_ISA avx512
#else
#error "no TERNGRAD_ISA_<NAME> is defined"
#endif

namespace terngrad {
namespace TERNGRAD_ISA {
namespace {

TERNGRAD_SIMD const unsigned char* at(const void* base, int64_t bytes) {
  return static_cast<const unsigned char*>(base) + bytes;
}

// kLanes elements of type T, widened. NaN stays some NaN.
template <class T>
TERNGRAD_SIMD Floats load_floats(const void* base, int64_t index) {
  return load_floats(static_cast<const T*>(nullptr), at(base, index * static_cast<int64_t>(sizeof(T))));
}

// kLanes elements, rounded to T.
template <class T>
TERNGRAD_SIMD void store_floats(void* base, int64_t index, Floats values) {
  store_floats(static_cast<T*>(nullptr), static_cast<unsigned char*>(base) + index * static_cast<int64_t>(sizeof(T)),
               values);
}

// An address may lie beyond the array: prefetches do not fault. (Computed as an integer, where that is defined.)
TERNGRAD_SIMD void prefetch(const void* base, int64_t bytes) {
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(base) + static_cast<uintptr_t>(bytes)));
}

}  // namespace
}  // namespace TERNGRAD_ISA
}  // namespace terngrad
