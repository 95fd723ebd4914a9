#include "operations.h"

#include "../../csrc/kernels/dispatch_types.h"
#include "../../csrc/kernels/simd.h"

namespace terngrad {
namespace tests {
namespace TERNGRAD_ISA {

using namespace terngrad::TERNGRAD_ISA;

void convert(const void* x, DType from, DType to, int64_t n, void* out) {
  with_dtype(from, [&](auto stored_from) {
    with_dtype(to, [&](auto stored_to) {
      using From = typename decltype(stored_from)::type;
      using To = typename decltype(stored_to)::type;
      for (int64_t i = 0; i < n; i += kLanes) store_floats<To>(out, i, load_floats<From>(x, i));
    });
  });
}

void thresholds(const float* x, int64_t n, const Quantiser& quantiser, uint32_t* out) {
  for (int64_t i = 0; i < n; i += kLanes) {
    Floats scaled = multiply(magnitude(load_floats<float>(x, i)), all_floats(quantiser.inverse));
    if (quantiser.bound < kTwo31) scaled = smaller_or_second(scaled, all_floats(quantiser.bound));
    const Ints threshold = to_threshold(scaled);
    memcpy(out + i, &threshold, sizeof threshold);
  }
}

}  // namespace TERNGRAD_ISA
}  // namespace tests
}  // namespace terngrad
