#include "kernels.h"
#include "simd.h"

namespace terngrad {
namespace TERNGRAD_ISA {

void clip(const void* x, DType dtype, int64_t n, float limit, void* out) {
  if (dtype != DType::float32) return scalar::clip(x, dtype, n, limit, out);
  const int64_t whole = n / kLanes * kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) {
    store_floats<float>(out, i, clipped(load_floats<float>(x, i), all_floats(limit)));
  }
  scalar::clip(at(x, 4 * whole), dtype, n - whole, limit, static_cast<unsigned char*>(out) + 4 * whole);
}

}  // namespace TERNGRAD_ISA
}  // namespace terngrad
