// Vector operations that the tests call by themselves, since what they make is not seen in trits: operations_simd.cpp
// is built once for each instruction set, as the kernels are.
#pragma once

#include "../../csrc/contract/message.h"
#include "../../csrc/contract/ternarize.h"

namespace terngrad {
namespace tests {

// n elements, a multiple of 16, to another type.
using Convert = void(const void* x, DType from, DType to, int64_t n, void* out);
// Their thresholds T.
using Thresholds = void(const float* x, int64_t n, const Quantiser& quantiser, uint32_t* out);

struct Operations {
  const char* isa;
  Convert* convert;
  Thresholds* thresholds;
};

#define TERNGRAD_DECLARE_OPERATIONS(isa) \
  namespace isa {                        \
  Convert convert;                       \
  Thresholds thresholds;                 \
  }
TERNGRAD_DECLARE_OPERATIONS(avx2)
TERNGRAD_DECLARE_OPERATIONS(avx512)
TERNGRAD_DECLARE_OPERATIONS(neon)
#undef TERNGRAD_DECLARE_OPERATIONS

}  // namespace tests
}  // namespace terngrad
