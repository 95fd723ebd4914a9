// Scale and limit of a layer, and the one order of its sums. docs/contract.md, section 2.
#pragma once

#include "floats.h"

namespace terngrad {

// 64 rows of 128 columns are a stripe. Each column is summed down its rows in float32, the columns are added in a tree,
// and stripe j is added in float64 to bin j mod 256.
constexpr int64_t kColumns = 128;
constexpr int64_t kStripeRows = 64;
constexpr int64_t kStripe = kColumns * kStripeRows;
constexpr int64_t kBins = 256;

constexpr float kSmallestScale = 0x1p-60f;

struct Scale {
  float scale;
  float limit;
};

// What one pass over a layer leaves: the largest |x| as bits (so that infinity and NaN win), the sum of squares, and
// the sum. With `center`, both sums are over x - x[0].
struct Statistics {
  uint32_t top;
  double q;
  double s;
};

// Element i takes element i + width/2, then width/4, ..., 1.
template <class T>
TERNGRAD_CONTRACT T tree_sum(T* values, int64_t width) {
  for (int64_t half = width / 2; half > 0; half /= 2) {
    for (int64_t i = 0; i < half; ++i) values[i] += values[i + half];
  }
  return values[0];
}

TERNGRAD_CONTRACT Scale poisoned_scale() { return Scale{float_of(kInfinity32), float_of(kInfinity32)}; }

TERNGRAD_CONTRACT float settle_scale(float scale) { return scale < kSmallestScale ? 0.0f : scale; }

// `clip` > 0, or 0 for none.
TERNGRAD_CONTRACT float limit_of(const Statistics& sums, int64_t n, double clip, bool center) {
  const float none = float_of(kInfinity32);
  if (clip == 0.0 || n == 0) return none;
  const double count = static_cast<double>(n);
  double variance = sums.q / count;
  if (center) {
    const double mean = sums.s / count;
    const double square = mean * mean;
    variance -= square;
    if (variance < 0.0) variance = 0.0;
  }
  const float limit = static_cast<float>(clip * sqrt(variance));
  return limit > 0.0f && is_finite(limit) ? limit : none;
}

TERNGRAD_CONTRACT Scale scale_of(const Statistics& sums, int64_t n, double clip, bool center) {
  if (sums.top >= kInfinity32) return poisoned_scale();
  const float top = float_of(sums.top);
  const float limit = limit_of(sums, n, clip, center);
  return Scale{settle_scale(top < limit ? top : limit), limit};
}

// Values that the caller passes: only they decide.
TERNGRAD_CONTRACT Scale passed_scale(float scale, float limit) {
  const bool sound = is_finite(scale) && scale >= 0.0f && limit > 0.0f;
  return sound ? Scale{settle_scale(scale), limit} : poisoned_scale();
}

TERNGRAD_CONTRACT bool is_poisoned(float scale) { return !is_finite(scale); }

}  // namespace terngrad
