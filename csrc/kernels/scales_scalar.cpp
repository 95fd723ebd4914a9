#include "dispatch_types.h"
#include "kernels.h"

namespace terngrad {
namespace scalar {

void scales(const void* x, DType dtype, int64_t n, int64_t first, int64_t last, bool center, StripeSums* sums) {
  with_dtype(dtype, [&](auto stored) {
    using T = typename decltype(stored)::type;
    const float origin = center && n > 0 ? load_float<T>(x, 0) : 0.0f;
    for (int64_t stripe = first; stripe < last; ++stripe) {
      float q[kColumns] = {};
      float s[kColumns] = {};
      const int64_t end = (stripe + 1) * kStripe < n ? (stripe + 1) * kStripe : n;
      for (int64_t element = stripe * kStripe; element < end; ++element) {
        const float value = load_float<T>(x, element);
        const uint32_t magnitude = magnitude_bits(value);
        if (magnitude > sums->top) sums->top = magnitude;
        const int64_t column = element % kColumns;
        const float difference = center ? value - origin : value;
        q[column] = fmaf(difference, difference, q[column]);
        s[column] += difference;
      }
      sums->q[stripe % kBins] += static_cast<double>(tree_sum(q, kColumns));
      if (center) sums->s[stripe % kBins] += static_cast<double>(tree_sum(s, kColumns));
    }
  });
}

}  // namespace scalar
}  // namespace terngrad
