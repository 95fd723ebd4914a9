// The instruction set that this translation unit is built for, and what all of them share. The build compiles each
// <operation>_simd.cpp once for each, with its flags and one TERNGRAD_ISA_<NAME>.
//
// simd_<isa>.h gives named vector operations, all of them the same ones, each with the meaning that stands here; the
// operation files use these only. A vector holds kLanes 32-bit lanes, or 4 * kLanes bytes: a step. Types: Floats; Ints;
// Bytes; and Signs, of which only the top bit of each byte counts, one for each element of a step.
//
// Memory (no alignment is assumed)
//   load_floats, store_floats   below: kLanes elements of any type
//   stream_floats, stores_end   stores past the caches where the processor has such, for what is not read again soon.
//                               The address is a multiple of kStreamAlignment, which is what large allocations have;
//                               stores_end() comes before the memory is given away
//   load_bytes, store_bytes     a step of bytes
//   load_bytes_wide             kLanes bytes, one a lane
//
// Arithmetic: float32, each operation rounded once, in the environment that the runtime has set
//   all_floats, all_bytes, zero_ints       one value everywhere
//   bits                        those of the floats
//   add, subtract, multiply     a + b, a - b, a * b
//   fused                       fma(a, b, c)
//   magnitude                   |x|; of a NaN too only the sign changes
//   larger, largest_lane        of integers below 2^31
//   tree_sum                    lane i takes lane i + kLanes / 2, then i + kLanes / 4, ..., i + 1
//   smaller_or_second           a < b ? a : b, for an `a` that arithmetic made: so b where a is NaN
//   clipped                     +-limit by the sign of x where |x| > limit, else x, and so where x is NaN; limit > 0
//   merge, add_bytes            or, and sum, byte by byte
//
// Trits
//   to_threshold                truncated to an integer; 2^31 for what is 2^31 or above, and for NaN
//   fires                       a lane's top bit is set where uniform < threshold: at most 2^31 - 1, and 2^31
//   signs                       the top bits of 4 vectors of lanes, in an order that `in_order` undoes
//   choose                      0 where nothing fires, else `minus` where it is negative and `plus` where not
//   in_order                    the bytes of a step by their columns
//   nibbles                     the lower halves of bytes: those of the first vector below those of the second
//   low_nibble, high_nibble     of each byte, as a byte below 16
//   sixteen_bytes, look_up_bytes      a table, and what it has for each byte that is below 16; 0 for those above 127
//   four_floats, look_up<Bit>   a table, and what it has for bits Bit and Bit + 1 of each lane
//
// Shorts: 2 * kLanes unsigned 16-bit lanes
//   load_bytes16, all_lanes16   bytes, one a lane; one value everywhere
//   add16, subtract16           modulo 2^16
//   shift_left16<Bits>          so too
//   high_products16             the upper halves of products
//   look_up_bytes               as above, for each byte of the lanes
//   widen16                     the first kLanes and the second as 32-bit lanes
//
// Random bits: a register holds a word of each of kBlocks consecutive Philox blocks, in an order that is its own, and
// kRegisters of them serve a step
//   all_words                   one word for all blocks
//   block_numbers               `first` and those that follow
//   products                    a word times a word
//   lower_words, upper_words    the halves of products
//   exclusive_or                of two, of bytes too, or of three
//   uniforms<Row>               u of a step of row `Row`: 4 vectors of lanes, by their columns
#pragma once

#include "../contract/message.h"

#define TERNGRAD_SIMD static inline __attribute__((always_inline))

#if defined(TERNGRAD_ISA_AVX2)
#include "simd_avx2.h"
#define TERNGRAD_ISA avx2
#elif defined(TERNGRAD_ISA_AVX512)
#include "simd_avx512.h"
#define TERNGRAD_ISA avx512
#elif defined(TERNGRAD_ISA_NEON)
#include "simd_neon.h"
#define TERNGRAD_ISA neon
#else
#error "no TERNGRAD_ISA_<NAME> is defined"
#endif

namespace terngrad {
namespace TERNGRAD_ISA {
namespace {

TERNGRAD_SIMD const unsigned char* at(const void* base, int64_t bytes) {
  return static_cast<const unsigned char*>(base) + bytes;
}

// kLanes elements of type T, widened. A NaN stays some NaN of the same sign.
template <class T>
TERNGRAD_SIMD Floats load_floats(const void* base, int64_t index) {
  return load_floats(static_cast<const T*>(nullptr), at(base, index * static_cast<int64_t>(sizeof(T))));
}

// kLanes elements, rounded to T; a NaN becomes the canonical one where T is not float.
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
