#include "dispatch_types.h"
#include "kernels.h"
#include "simd.h"
#include "tiles.h"

namespace terngrad {
namespace TERNGRAD_ISA {
namespace {

constexpr int64_t kAccumulators = 8;
constexpr int64_t kSweep = kAccumulators * kLanes;  // columns whose sums stay in registers
constexpr int64_t kSweeps = kColumns / kSweep;
constexpr int64_t kVectors = kColumns / kLanes;

// Column i takes column i + 64, ..., i + 1.
TERNGRAD_SIMD float tree_sum(Floats* columns) {
  for (int64_t half = kVectors / 2; half > 0; half /= 2) {
    for (int64_t i = 0; i < half; ++i) columns[i] = add(columns[i], columns[i + half]);
  }
  return tree_sum(columns[0]);
}

template <class T, bool Center>
TERNGRAD_SIMD void row_of_sweep(const void* x, int64_t index, Floats origin, Floats* q, Floats* s, Ints* top) {
#pragma GCC unroll 8
  for (int64_t i = 0; i < kAccumulators; ++i) {
    const Floats value = load_floats<T>(x, index + i * kLanes);
    top[i % 2] = larger(top[i % 2], bits(magnitude(value)));
    const Floats difference = Center ? subtract(value, origin) : value;
    q[i] = fused(difference, difference, q[i]);
    if (Center) s[i] = add(s[i], difference);
  }
}

template <class T, bool Center>
TERNGRAD_SIMD void scales_of(const void* x, int64_t n, int64_t first, int64_t last, StripeSums* sums) {
  const T pad = Center && n > 0 ? load<T>(x, 0) : T{};
  const float origin_value = widen(pad);
  const Floats origin = all_floats(origin_value);
  Ints top[2] = {zero_ints(), zero_ints()};
  for (int64_t stripe = first; stripe < last; ++stripe) {
    const int64_t begin = stripe * kStripe;
    const int64_t count = smaller(kStripe, n - begin);
    const int64_t rows = count / kColumns;
    // A row that is not full is completed with what adds nothing: zeros, or x[0] where that is subtracted.
    T rest[kColumns];
    const bool partial = count % kColumns != 0;
    if (partial) {
      for (int64_t i = 0; i < kColumns; ++i) {
        rest[i] = rows * kColumns + i < count ? load<T>(x, begin + rows * kColumns + i) : pad;
      }
    }
    Floats q[kVectors];
    Floats s[kVectors];
    for (int64_t sweep = 0; sweep < kSweeps; ++sweep) {
      Floats sweep_q[kAccumulators];
      Floats sweep_s[kAccumulators];
      for (int64_t i = 0; i < kAccumulators; ++i) sweep_q[i] = sweep_s[i] = all_floats(0.0f);
      for (int64_t row = 0; row < rows; ++row) {
        // The next stripe, in the order of its addresses: memory wants that more than this access order.
        constexpr auto kRowBytes = static_cast<int64_t>(sizeof(T)) * kSweep;
        const int64_t ahead = (sweep * kStripeRows + row) * kRowBytes;
        for (int64_t line = 0; line < kRowBytes; line += 64) {
          prefetch(x, (begin + kStripe) * static_cast<int64_t>(sizeof(T)) + ahead + line);
        }
        row_of_sweep<T, Center>(x, begin + row * kColumns + sweep * kSweep, origin, sweep_q, sweep_s, top);
      }
      if (partial) row_of_sweep<T, Center>(rest, sweep * kSweep, origin, sweep_q, sweep_s, top);
      for (int64_t i = 0; i < kAccumulators; ++i) {
        q[sweep * kAccumulators + i] = sweep_q[i];
        s[sweep * kAccumulators + i] = sweep_s[i];
      }
    }
    sums->q[stripe % kBins] += static_cast<double>(tree_sum(q));
    if (Center) sums->s[stripe % kBins] += static_cast<double>(tree_sum(s));
  }
  const auto found = static_cast<uint32_t>(largest_lane(larger(top[0], top[1])));
  if (found > sums->top) sums->top = found;
}

}  // namespace

void scales(const void* x, DType dtype, int64_t n, int64_t first, int64_t last, bool center, StripeSums* sums) {
  with_dtype(dtype, [&](auto stored) {
    using T = typename decltype(stored)::type;
    if (center) {
      scales_of<T, true>(x, n, first, last, sums);
    } else {
      scales_of<T, false>(x, n, first, last, sums);
    }
  });
}

}  // namespace TERNGRAD_ISA
}  // namespace terngrad
