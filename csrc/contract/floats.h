// Widening to float32, and rounding from it, once and to nearest even. docs/contract.md, sections 1 and 6.
//
// What hardware does with the payload of a NaN differs. Widening keeps a NaN's sign (which is a trit's sign) and
// nothing else of it; what is written in another type than it was read is the canonical NaN of the new type. Assumes
// the default floating-point environment (the runtime sets it).
#pragma once

#include "platform.h"

namespace terngrad {

constexpr uint32_t kNaN32 = 0x7fc00000u;
constexpr uint32_t kInfinity32 = 0x7f800000u;
constexpr uint64_t kNaN64 = 0x7ff8000000000000u;
constexpr uint16_t kNaNHalf = 0x7e00u;
constexpr uint16_t kNaNBFloat16 = 0x7fc0u;

// Storage types: bit patterns with a name.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

TERNGRAD_CONTRACT uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

TERNGRAD_CONTRACT float float_of(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

TERNGRAD_CONTRACT double nan64() {
  const uint64_t bits = kNaN64;
  double x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

TERNGRAD_CONTRACT uint32_t magnitude_bits(float x) { return bits_of(x) & 0x7fffffffu; }

TERNGRAD_CONTRACT bool is_nan(float x) { return magnitude_bits(x) > kInfinity32; }

TERNGRAD_CONTRACT bool is_finite(float x) { return magnitude_bits(x) < kInfinity32; }

TERNGRAD_CONTRACT float widen(float x) { return x; }

TERNGRAD_CONTRACT float widen(Half x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
#if defined(__CUDA_ARCH__)  // an instruction, where what follows branches
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
  return (x.bits & 0x7fffu) > 0x7c00u ? float_of(sign | kNaN32) : wide;
#else
  const uint32_t exponent = (x.bits >> 10) & 31u;
  const uint32_t mantissa = x.bits & 0x3ffu;
  if (exponent == 31) return float_of(sign | (mantissa ? kNaN32 : kInfinity32));
  // A float16 subnormal is mantissa * 2^-24: exact, and normal as a float32.
  if (exponent == 0) return float_of(sign | bits_of(static_cast<float>(mantissa) * 0x1p-24f));
  return float_of(sign | (exponent + 112u) << 23 | mantissa << 13);
#endif
}

TERNGRAD_CONTRACT float widen(BFloat16 x) { return float_of(static_cast<uint32_t>(x.bits) << 16); }

// A processor's conversion keeps the sign of a NaN; a CUDA device's gives one NaN for all.
TERNGRAD_CONTRACT float widen(double x) {
#if defined(__CUDA_ARCH__)
  if (x != x) return float_of((signbit(x) ? 0x80000000u : 0u) | kNaN32);
#endif
  return static_cast<float>(x);
}

// A value of a float32 payload: a float32 with all its bits, a NaN of another type as the canonical one.
TERNGRAD_CONTRACT float carried(float x) { return x; }

template <class T>
TERNGRAD_CONTRACT float carried(T x) {
  const float wide = widen(x);
  return is_nan(wide) ? float_of(kNaN32) : wide;
}

TERNGRAD_CONTRACT void narrow(float x, float* out) { *out = x; }

TERNGRAD_CONTRACT void narrow(float x, Half* out) {
  const uint32_t sign = (bits_of(x) >> 16) & 0x8000u;
  uint32_t magnitude = magnitude_bits(x);
  if (magnitude > kInfinity32) {
    out->bits = kNaNHalf;
  } else if (magnitude >= 0x47800000u) {  // 2^16 and above
    out->bits = static_cast<uint16_t>(sign | 0x7c00u);
  } else if (magnitude < 0x38800000u) {  // below 2^-14: multiples of 2^-24, which is the spacing of float32 at 0.5
    out->bits = static_cast<uint16_t>(sign | (bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u));
  } else {  // rounding may carry into the exponent, up to infinity, as it should
    magnitude += 0xfffu + ((magnitude >> 13) & 1u);
    out->bits = static_cast<uint16_t>(sign | (magnitude - 0x38000000u) >> 13);
  }
}

TERNGRAD_CONTRACT void narrow(float x, BFloat16* out) {
  const uint32_t bits = bits_of(x);
  out->bits = is_nan(x) ? kNaNBFloat16 : static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

TERNGRAD_CONTRACT void narrow(float x, double* out) { *out = is_nan(x) ? nan64() : static_cast<double>(x); }

// Loads and stores that assume no alignment.
template <class T>
TERNGRAD_CONTRACT T load(const void* base, int64_t index) {
  T x;
  memcpy(&x, static_cast<const unsigned char*>(base) + index * static_cast<int64_t>(sizeof(T)), sizeof x);
  return x;
}

template <class T>
TERNGRAD_CONTRACT void store(void* base, int64_t index, T x) {
  memcpy(static_cast<unsigned char*>(base) + index * static_cast<int64_t>(sizeof(T)), &x, sizeof x);
}

template <class T>
TERNGRAD_CONTRACT float load_float(const void* base, int64_t index) {
  return widen(load<T>(base, index));
}

template <class T>
TERNGRAD_CONTRACT void store_float(void* base, int64_t index, float x) {
  T narrowed;
  narrow(x, &narrowed);
  store<T>(base, index, narrowed);
}

}  // namespace terngrad
