#include "bounds.h"

#include <cstdlib>

namespace terngrad {
namespace bench {

namespace {

// Makes the compiler believe that a value is used.
void keep(uint32_t value) { asm volatile("" : : "r"(value)); }

}  // namespace

void read(const float* x, int64_t n) {
  // Integer maxima in as many chains as the compiler likes: bound by the loads.
  uint32_t top[64] = {};
  for (int64_t i = 0; i + 64 <= n; i += 64) {
    for (int64_t j = 0; j < 64; ++j) {
      uint32_t bits;
      memcpy(&bits, x + i + j, sizeof bits);
      top[j] |= bits;
    }
  }
  for (int64_t j = 1; j < 64; ++j) top[0] |= top[j];
  keep(top[0]);
}

void philox(const std::string& isa, const Draw& draw, int64_t n) {
#if defined(TERNGRAD_HAS_AVX2)
  if (isa == "avx2") return keep(avx2::philox(draw, n));
#endif
#if defined(TERNGRAD_HAS_AVX512)
  if (isa == "avx512") return keep(avx512::philox(draw, n));
#endif
#if defined(TERNGRAD_HAS_NEON)
  if (isa == "neon") return keep(neon::philox(draw, n));
#endif
  std::abort();
}

}  // namespace bench
}  // namespace terngrad
