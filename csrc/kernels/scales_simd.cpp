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
// Rows that are swept before the next columns are: few enough that they are still in the L1 cache then.
constexpr int64_t kChunkRows = 8;
constexpr int64_t kAhead = 4096;  // bytes

// Column i takes column i + 64, ..., i + 1.
TERNGRAD_SIMD float tree_sum(Floats* columns) {
  for (int64_t half = kVectors / 2; half > 0; half /= 2) {
    for (int64_t i = 0; i < half; ++i) columns[i] = add(columns[i], columns[i + half]);
  }
  return tree_sum(columns[0]);
}

// Adds `rows` rows of kSweep columns, from element `index` on, to their columns' sums.
template <class T, bool Center>
TERNGRAD_SIMD void sweep_rows(const void* x, int64_t index, int64_t rows, Floats origin, Floats* all_q, Floats* all_s,
                              Ints* top) {
  Floats q[kAccumulators];
  Floats s[kAccumulators];
#pragma GCC unroll 8
  for (int64_t i = 0; i < kAccumulators; ++i) {
    q[i] = all_q[i];
    s[i] = all_s[i];
  }
  for (int64_t row = 0; row < rows; ++row) {
#pragma GCC unroll 8
    for (int64_t i = 0; i < kAccumulators; ++i) {
      const Floats value = load_floats<T>(x, index + row * kColumns + i * kLanes);
      top[i % 2] = larger(top[i % 2], bits(magnitude(value)));
      const Floats difference = Center ? subtract(value, origin) : value;
      q[i] = fused(difference, difference, q[i]);
      if (Center) s[i] = add(s[i], difference);
    }
  }
#pragma GCC unroll 8
  for (int64_t i = 0; i < kAccumulators; ++i) {
    all_q[i] = q[i];
    all_s[i] = s[i];
  }
}

// Every sweep of a chunk asks for its share of what comes kAhead later, in the order of addresses.
template <class T>
TERNGRAD_SIMD void prefetch_share(const void* x, int64_t chunk, int64_t sweep) {
  constexpr auto kShare = static_cast<int64_t>(sizeof(T)) * kChunkRows * kSweep;
  const int64_t from = chunk * static_cast<int64_t>(sizeof(T)) + sweep * kShare + kAhead;
  for (int64_t line = 0; line < kShare; line += 64) prefetch(x, from + line);
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
    for (int64_t i = 0; i < kVectors; ++i) q[i] = s[i] = all_floats(0.0f);
    for (int64_t row = 0; row < rows; row += kChunkRows) {
      const int64_t chunk = begin + row * kColumns;
      const int64_t chunk_rows = smaller(kChunkRows, rows - row);
      for (int64_t sweep = 0; sweep < kSweeps; ++sweep) {
        prefetch_share<T>(x, chunk, sweep);
        sweep_rows<T, Center>(x, chunk + sweep * kSweep, chunk_rows, origin, q + sweep * kAccumulators,
                              s + sweep * kAccumulators, top);
      }
    }
    for (int64_t sweep = 0; partial && sweep < kSweeps; ++sweep) {
      sweep_rows<T, Center>(rest, sweep * kSweep, 1, origin, q + sweep * kAccumulators, s + sweep * kAccumulators, top);
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
