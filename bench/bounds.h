// What the kernels are held against.
#pragma once

#include <string>

#include "../csrc/contract/philox.h"

namespace terngrad {
namespace bench {

// Reads n floats once.
void read(const float* x, int64_t n);
// The random words of n elements, and nothing done with them, with the instruction set's own Philox.
void philox(const std::string& isa, const Draw& draw, int64_t n);

#define TERNGRAD_DECLARE_PHILOX(isa)            \
  namespace isa {                               \
  uint32_t philox(const Draw& draw, int64_t n); \
  }
TERNGRAD_DECLARE_PHILOX(avx2)
TERNGRAD_DECLARE_PHILOX(avx512)
TERNGRAD_DECLARE_PHILOX(neon)
#undef TERNGRAD_DECLARE_PHILOX

}  // namespace bench
}  // namespace terngrad
