// The named vector operations of simd.h for AVX2 with FMA and F16C.
#pragma once

#include <immintrin.h>

#include "../contract/message.h"
#include "../contract/ternarize.h"

namespace terngrad {
namespace avx2 {
namespace {

constexpr int64_t kLanes = 8;

using Floats = __m256;
using Ints = __m256i;
using Shorts = __m256i;
using Bytes = __m256i;
using Signs = __m256i;

// ---- memory

TERNGRAD_SIMD Floats load_floats(const float*, const unsigned char* from) {
  return _mm256_loadu_ps(reinterpret_cast<const float*>(from));
}
TERNGRAD_SIMD Floats load_floats(const Half*, const unsigned char* from) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
TERNGRAD_SIMD Floats load_floats(const BFloat16*, const unsigned char* from) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
TERNGRAD_SIMD Floats load_floats(const double*, const unsigned char* from) {
  const __m128 low = _mm256_cvtpd_ps(_mm256_loadu_pd(reinterpret_cast<const double*>(from)));
  const __m128 high = _mm256_cvtpd_ps(_mm256_loadu_pd(reinterpret_cast<const double*>(from + 32)));
  return _mm256_set_m128(high, low);
}

// NaNs of `values` as the bits of `nan`.
TERNGRAD_SIMD Ints with_nan(Ints bits, Floats values, int nan) {
  const Ints unordered = _mm256_castps_si256(_mm256_cmp_ps(values, values, _CMP_UNORD_Q));
  return _mm256_blendv_epi8(bits, _mm256_set1_epi32(nan), unordered);
}

TERNGRAD_SIMD void store_low_halves(unsigned char* to, Ints values) {
  const __m256i packed = _mm256_packus_epi32(values, values);
  const __m256i ordered = _mm256_permute4x64_epi64(packed, 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(ordered));
}

TERNGRAD_SIMD void store_floats(float*, unsigned char* to, Floats values) {
  _mm256_storeu_ps(reinterpret_cast<float*>(to), values);
}
TERNGRAD_SIMD void store_floats(Half*, unsigned char* to, Floats values) {
  const __m128i rounded = _mm256_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  store_low_halves(to, with_nan(_mm256_cvtepu16_epi32(rounded), values, kNaNHalf));
}
TERNGRAD_SIMD void store_floats(BFloat16*, unsigned char* to, Floats values) {
  const Ints bits = _mm256_castps_si256(values);
  const Ints odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const Ints rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
  store_low_halves(to, with_nan(_mm256_srli_epi32(rounded, 16), values, kNaNBFloat16));
}
TERNGRAD_SIMD void store_floats(double*, unsigned char* to, Floats values) {
  const __m256d nan = _mm256_castsi256_pd(_mm256_set1_epi64x(static_cast<long long>(kNaN64)));
  for (int half = 0; half < 2; ++half) {
    const __m256d wide = _mm256_cvtps_pd(half ? _mm256_extractf128_ps(values, 1) : _mm256_castps256_ps128(values));
    const __m256d canonical = _mm256_blendv_pd(wide, nan, _mm256_cmp_pd(wide, wide, _CMP_UNORD_Q));
    _mm256_storeu_pd(reinterpret_cast<double*>(to + 32 * half), canonical);
  }
}

constexpr uintptr_t kStreamAlignment = 16;
TERNGRAD_SIMD void stream_floats(float* to, Floats values) {
  _mm_stream_ps(to, _mm256_castps256_ps128(values));
  _mm_stream_ps(to + 4, _mm256_extractf128_ps(values, 1));
}
TERNGRAD_SIMD void stores_end() { _mm_sfence(); }

TERNGRAD_SIMD void store_bytes(void* to, Bytes bytes) { _mm256_storeu_si256(static_cast<__m256i*>(to), bytes); }

TERNGRAD_SIMD Bytes load_bytes(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }

TERNGRAD_SIMD Ints load_bytes_wide(const void* from) {
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(from)));
}

TERNGRAD_SIMD Shorts load_bytes16(const void* from) {
  return _mm256_cvtepu8_epi16(_mm_loadu_si128(static_cast<const __m128i*>(from)));
}

// ---- arithmetic

TERNGRAD_SIMD Floats all_floats(float x) { return _mm256_set1_ps(x); }
TERNGRAD_SIMD Ints zero_ints() { return _mm256_setzero_si256(); }
TERNGRAD_SIMD Bytes all_bytes(uint32_t x) { return _mm256_set1_epi8(static_cast<char>(x)); }
TERNGRAD_SIMD Ints bits(Floats x) { return _mm256_castps_si256(x); }
TERNGRAD_SIMD Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
TERNGRAD_SIMD Floats subtract(Floats a, Floats b) { return _mm256_sub_ps(a, b); }
TERNGRAD_SIMD Floats multiply(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
TERNGRAD_SIMD Floats fused(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
TERNGRAD_SIMD Floats magnitude(Floats x) {
  return _mm256_and_ps(x, _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff)));
}
TERNGRAD_SIMD Ints larger(Ints a, Ints b) { return _mm256_max_epi32(a, b); }
TERNGRAD_SIMD Bytes merge(Bytes a, Bytes b) { return _mm256_or_si256(a, b); }
TERNGRAD_SIMD Bytes add_bytes(Bytes a, Bytes b) { return _mm256_add_epi8(a, b); }

TERNGRAD_SIMD Shorts all_lanes16(uint32_t x) { return _mm256_set1_epi16(static_cast<short>(x)); }
TERNGRAD_SIMD Shorts add16(Shorts a, Shorts b) { return _mm256_add_epi16(a, b); }
TERNGRAD_SIMD Shorts subtract16(Shorts a, Shorts b) { return _mm256_sub_epi16(a, b); }
template <int Bits>
TERNGRAD_SIMD Shorts shift_left16(Shorts x) {
  return _mm256_slli_epi16(x, Bits);
}
TERNGRAD_SIMD Shorts high_products16(Shorts a, Shorts b) { return _mm256_mulhi_epu16(a, b); }
TERNGRAD_SIMD void widen16(Shorts x, Ints* first, Ints* second) {
  *first = _mm256_cvtepu16_epi32(_mm256_castsi256_si128(x));
  *second = _mm256_cvtepu16_epi32(_mm256_extracti128_si256(x, 1));
}

template <class... Values>
TERNGRAD_SIMD Bytes sixteen_bytes(Values... values) {
  return _mm256_broadcastsi128_si256(_mm_setr_epi8(static_cast<char>(values)...));
}
TERNGRAD_SIMD Shorts look_up_bytes(Bytes table, Shorts indices) { return _mm256_shuffle_epi8(table, indices); }

// The instruction gives b where either is NaN.
TERNGRAD_SIMD Floats smaller_or_second(Floats a, Floats b) { return _mm256_min_ps(a, b); }

TERNGRAD_SIMD Floats clipped(Floats x, Floats limit) {
  const Floats beyond = _mm256_cmp_ps(magnitude(x), limit, _CMP_GT_OQ);
  const Floats sign = _mm256_and_ps(x, _mm256_castsi256_ps(_mm256_set1_epi32(INT32_MIN)));
  return _mm256_blendv_ps(x, _mm256_or_ps(limit, sign), beyond);
}

// What does not fit a signed integer, NaN included, gives 0x80000000: 2^31.
TERNGRAD_SIMD Ints to_threshold(Floats scaled) { return _mm256_cvttps_epi32(scaled); }

TERNGRAD_SIMD Ints fires(Ints uniform, Ints threshold) { return _mm256_sub_epi32(uniform, threshold); }

TERNGRAD_SIMD int32_t largest_lane(Ints x) {
  __m128i m = _mm_max_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
  m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e));
  m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1));
  return _mm_cvtsi128_si32(m);
}

TERNGRAD_SIMD float tree_sum(Floats x) {
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}

// ---- trits

// Saturating packs keep the sign.
TERNGRAD_SIMD Signs signs(Ints a, Ints b, Ints c, Ints d) {
  return _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
}

TERNGRAD_SIMD Bytes choose(Signs fire, Signs negative, Bytes plus, Bytes minus) {
  const Bytes fired = _mm256_cmpgt_epi8(_mm256_setzero_si256(), fire);
  return _mm256_and_si256(fired, _mm256_blendv_epi8(plus, minus, negative));
}

TERNGRAD_SIMD Bytes in_order(Bytes x) {
  return _mm256_permutevar8x32_epi32(x, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

TERNGRAD_SIMD Bytes nibbles(Bytes low, Bytes high) {
  const Bytes mask = _mm256_set1_epi8(15);
  return _mm256_or_si256(_mm256_and_si256(low, mask), _mm256_andnot_si256(mask, _mm256_slli_epi16(high, 4)));
}

TERNGRAD_SIMD Bytes low_nibble(Bytes x) { return _mm256_and_si256(x, _mm256_set1_epi8(15)); }
TERNGRAD_SIMD Bytes high_nibble(Bytes x) { return low_nibble(_mm256_srli_epi16(x, 4)); }

TERNGRAD_SIMD Floats four_floats(float a, float b, float c, float d) { return _mm256_setr_ps(a, b, c, d, a, b, c, d); }

template <int Bit>
TERNGRAD_SIMD Floats look_up(Floats table, Ints codes) {
  return _mm256_permutevar_ps(table, _mm256_srli_epi32(codes, Bit));
}

// ---- random bits: 64-bit lanes, a word in the lower half of each, anything in the upper: what is there never matters

constexpr int64_t kBlocks = 4;
constexpr int64_t kRegisters = 2;
using Products = Ints;

TERNGRAD_SIMD Ints all_words(uint32_t x) { return _mm256_set1_epi64x(static_cast<long long>(x)); }
TERNGRAD_SIMD Ints products(Ints a, Ints b) { return _mm256_mul_epu32(a, b); }
TERNGRAD_SIMD Ints lower_words(Ints x) { return x; }
TERNGRAD_SIMD Ints upper_words(Ints x) { return _mm256_srli_epi64(x, 32); }
TERNGRAD_SIMD Ints exclusive_or(Ints a, Ints b) { return _mm256_xor_si256(a, b); }
TERNGRAD_SIMD Ints exclusive_or(Ints a, Ints b, Ints c) { return _mm256_xor_si256(_mm256_xor_si256(a, b), c); }

// In the order that lets each 128-bit half hold what `uniforms` shuffles out of it.
TERNGRAD_SIMD Ints block_numbers(uint32_t first) {
  return _mm256_add_epi64(all_words(first), _mm256_setr_epi64x(0, 2, 1, 3));
}

struct Words {
  Ints w[4];
};

template <int Row>
TERNGRAD_SIMD void uniforms(const Words (&words)[kRegisters], Ints (&uniform)[4]) {
  // From the 8 bytes (w, y) of a block, column j: w byte j on top, then bytes j, j + 1, j + 2 (mod 4) of y.
  const Ints shuffle = _mm256_setr_epi8(6, 5, 4, 0, 7, 6, 5, 1, 4, 7, 6, 2, 5, 4, 7, 3,  //
                                        6, 5, 4, 0, 7, 6, 5, 1, 4, 7, 6, 2, 5, 4, 7, 3);
  const Ints second = _mm256_add_epi8(shuffle, _mm256_set1_epi8(8));
#pragma GCC unroll 2
  for (int i = 0; i < kRegisters; ++i) {
    const Ints* w = words[i].w;
    const Ints y = _mm256_xor_si256(w[(Row + 1) % 4], w[(Row + 2) % 4]);
    const Ints pairs = _mm256_blend_epi32(w[Row], _mm256_slli_epi64(y, 32), 0xaa);
    uniform[2 * i] = _mm256_srli_epi32(_mm256_shuffle_epi8(pairs, shuffle), 1);
    uniform[2 * i + 1] = _mm256_srli_epi32(_mm256_shuffle_epi8(pairs, second), 1);
  }
}

}  // namespace
}  // namespace avx2
}  // namespace terngrad
