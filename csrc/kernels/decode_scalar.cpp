#include "dispatch_types.h"
#include "kernels.h"
#include "tiles.h"

namespace terngrad {
namespace scalar {

namespace {

// Gives f(i, t) for each of the n elements of a payload, t the trit, the count or the carried value.
template <class F>
void for_each_value(const uint8_t* payload, Packing packing, int64_t n, const F& f) {
  if (packing == Packing::float32) {
    for (int64_t i = 0; i < n; ++i) f(i, load<float>(payload, i));
    return;
  }
  float values[kUnit];
  for (int64_t start = 0; start < n; start += kUnit) {
    const int64_t count = smaller(kUnit, n - start);
    to_floats(payload + payload_bytes(packing, start), packing, count, scalar::unpack, values);
    for (int64_t i = 0; i < count; ++i) f(start + i, values[i]);
  }
}

}  // namespace

void decode(const uint8_t* payload, Packing packing, int64_t n, float worth, DType dtype, void* out) {
  with_dtype(dtype, [&](auto stored) {
    using T = typename decltype(stored)::type;
    if (packing == Packing::float32) return decode_carried<T>(payload, n, worth, out);
    for_each_value(payload, packing, n, [&](int64_t i, float t) { store_float<T>(out, i, worth * t); });
  });
}

void decode_sum(const Terms& terms, Packing packing, int64_t n, bool fresh, DType dtype, void* out) {
  float sums[kUnit];
  with_dtype(dtype, [&](auto stored) {
    using T = typename decltype(stored)::type;
    for (int64_t start = 0; start < n; start += kUnit) {
      const int64_t count = smaller(kUnit, n - start);
      for (int64_t i = 0; i < count; ++i) sums[i] = fresh ? 0.0f : load_float<T>(out, start + i);
      for (int64_t term = 0; term < terms.count; ++term) {
        const float worth = terms.worth[term];
        for_each_value(terms.payloads[term] + payload_bytes(packing, start), packing, count,
                       [&](int64_t i, float t) { sums[i] = fmaf(worth, t, sums[i]); });
      }
      for (int64_t i = 0; i < count; ++i) store_float<T>(out, start + i, sums[i]);
    }
  });
}

}  // namespace scalar
}  // namespace terngrad
