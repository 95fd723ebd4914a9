#include "dispatch_types.h"
#include "kernels.h"

namespace terngrad {
namespace scalar {

void clip(const void* x, DType dtype, int64_t n, float limit, void* out) {
  with_dtype(dtype, [&](auto stored) {
    using T = typename decltype(stored)::type;
    for (int64_t i = 0; i < n; ++i) {
      const T value = load<T>(x, i);
      const float wide = widen(value);
      // False for NaN, which stays.
      const bool beyond = float_of(magnitude_bits(wide)) > limit;
      if (beyond) {
        store_float<T>(out, i, bits_of(wide) >> 31 ? -limit : limit);
      } else {
        store<T>(out, i, value);
      }
    }
  });
}

}  // namespace scalar
}  // namespace terngrad
