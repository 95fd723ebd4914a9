// From |x| and 31 random bits to a trit. docs/contract.md, section 4.
#pragma once

#include "philox.h"
#include "scale.h"

namespace terngrad {

constexpr float kTwo31 = 0x1p31f;

// What a layer's scale and limit come to. `live` is false where every code is 0: a zero or poisoned layer.
struct Quantiser {
  float inverse;
  float bound;
  bool live;
};

// `scale` is at least 2^-60 and finite, so the inverse is normal: between 2^-97 and 2^91. The step up makes
// |x| = scale fire always.
TERNGRAD_CONTRACT float inverse_of(float scale) {
  const float inverse = kTwo31 / scale;
  return scale * inverse < kTwo31 ? float_of(bits_of(inverse) + 1u) : inverse;
}

TERNGRAD_CONTRACT Quantiser quantiser_of(Scale layer) {
  if (layer.scale == 0.0f || is_poisoned(layer.scale)) return Quantiser{0.0f, 0.0f, false};
  const float inverse = inverse_of(layer.scale);
  const float bound = layer.limit * inverse;
  return Quantiser{inverse, bound < kTwo31 ? bound : kTwo31, true};
}

// T in [0, 2^31]: the element fires if u < T. The comparison is false for NaN, which so takes the bound; the bound is
// at most 2^31, so the conversion is defined.
TERNGRAD_CONTRACT uint32_t threshold_of(float x, const Quantiser& quantiser) {
  const float scaled = float_of(magnitude_bits(x)) * quantiser.inverse;
  return static_cast<uint32_t>(scaled < quantiser.bound ? scaled : quantiser.bound);
}

// A trit as bits, from which any code is cut out: none for 0, every even one for +1, all for -1.
TERNGRAD_CONTRACT uint32_t pattern_of(float x, uint32_t threshold, uint32_t uniform) {
  const uint32_t sign = 0u - (bits_of(x) >> 31);
  return uniform < threshold ? sign | 0x55555555u : 0u;
}

TERNGRAD_CONTRACT int8_t trit_in(uint32_t pattern) {
  return static_cast<int8_t>((pattern & 1u) - (pattern >> 30 & 2u));
}

}  // namespace terngrad
