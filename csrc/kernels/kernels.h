// The table of operations. Each instruction set implements all of them: <operation>_<scalar|simd>.cpp.
//
// Kernels take raw pointers without any alignment and 64-bit counts; they neither validate nor allocate. `dtype` is the
// type of the floating-point array. A kernel may be called for any range of a piece that begins at a multiple of kUnit
// elements and ends at another or at the piece's end, so that the runtime can cut a piece for threads. The runtime has
// set the floating-point environment.
#pragma once

#include "../contract/message.h"
#include "../contract/ternarize.h"

namespace terngrad {

// The bins of a layer's sums (docs/contract.md, section 2), and the largest magnitude so far. Starts at zero.
struct StripeSums {
  double q[kBins];
  double s[kBins];
  uint32_t top;
};

// Several messages that are decoded and added: their payloads of one piece, and what a trit of each is worth
// (weight * scale; the weight alone for a float32 payload).
struct Terms {
  const uint8_t* const* payloads;
  const float* worth;
  int64_t count;
};

// Several payloads of one piece whose trits and counts are added.
struct Addends {
  const uint8_t* const* payloads;
  const Packing* packings;
  int64_t count;
};

// Adds stripes [first, last) of the n elements at x to their bins, in order. `center`: sums of x - x[0],
// whose magnitude then may count for the top whatever the stripes.
using ScalesKernel = void(const void* x, DType dtype, int64_t n, int64_t first, int64_t last, bool center,
                          StripeSums* sums);

// n elements, the first of which is element `first` of its layer. A float32 payload is the values themselves.
using EncodeKernel = void(const void* x, DType dtype, int64_t n, int64_t first, const Draw& draw,
                          const Quantiser& quantiser, Packing packing, uint8_t* payload);
using TernarizeKernel = void(const void* x, DType dtype, int64_t n, int64_t first, const Draw& draw,
                             const Quantiser& quantiser, int8_t* trits);

// out = worth * t, rounded to dtype, t the trit or the count. A float32 payload with worth 1 is copied.
using DecodeKernel = void(const uint8_t* payload, Packing packing, int64_t n, float worth, DType dtype, void* out);

// out = out (+0 if `fresh`) plus worth * t of each term in turn, one fma each, rounded to dtype once.
using DecodeSumKernel = void(const Terms& terms, Packing packing, int64_t n, bool fresh, DType dtype, void* out);

// Counts: the sums of the addends' trits and counts, modulo 2^bits.
using SumTritsKernel = void(const Addends& addends, int64_t n, Packing packing, uint8_t* payload);

// Elements beyond +-limit become +-limit, all others are copied. `out` may be x.
using ClipKernel = void(const void* x, DType dtype, int64_t n, float limit, void* out);

// The sign of each int8 (for counts4 and counts8 the int8, modulo 2^bits), packed; and back.
using PackKernel = void(const int8_t* values, int64_t n, Packing packing, uint8_t* payload);
using UnpackKernel = void(const uint8_t* payload, int64_t n, Packing packing, int8_t* values);

struct Kernels {
  const char* isa;
  ScalesKernel* scales;
  EncodeKernel* encode;
  TernarizeKernel* ternarize;
  DecodeKernel* decode;
  DecodeSumKernel* decode_sum;
  SumTritsKernel* sum_trits;
  ClipKernel* clip;
  PackKernel* pack;
  UnpackKernel* unpack;
};

#define TERNGRAD_DECLARE_KERNELS(isa) \
  namespace isa {                     \
  ScalesKernel scales;                \
  EncodeKernel encode;                \
  TernarizeKernel ternarize;          \
  DecodeKernel decode;                \
  DecodeSumKernel decode_sum;         \
  SumTritsKernel sum_trits;           \
  ClipKernel clip;                    \
  PackKernel pack;                    \
  UnpackKernel unpack;                \
  }

TERNGRAD_DECLARE_KERNELS(scalar)
TERNGRAD_DECLARE_KERNELS(avx2)
TERNGRAD_DECLARE_KERNELS(avx512)
TERNGRAD_DECLARE_KERNELS(neon)

#undef TERNGRAD_DECLARE_KERNELS

}  // namespace terngrad
