// The named vector operations of simd.h for AVX-512 F, BW, DQ and VL. They are made as in simd_avx2.h.
#pragma once

#include <immintrin.h>

#include "../contract/message.h"
#include "../contract/ternarize.h"

namespace terngrad {
namespace avx512 {
namespace {

constexpr int64_t kLanes = 16;

using Floats = __m512;
using Ints = __m512i;
using Shorts = __m512i;
using Bytes = __m512i;
using Signs = __m512i;

// ---- memory

TERNGRAD_SIMD Floats load_floats(const float*, const unsigned char* from) { return _mm512_loadu_ps(from); }
TERNGRAD_SIMD Floats load_floats(const Half*, const unsigned char* from) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
TERNGRAD_SIMD Floats load_floats(const BFloat16*, const unsigned char* from) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
TERNGRAD_SIMD Floats load_floats(const double*, const unsigned char* from) {
  const __m256 low = _mm512_cvtpd_ps(_mm512_loadu_pd(from));
  const __m256 high = _mm512_cvtpd_ps(_mm512_loadu_pd(from + 64));
  return _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1);
}

TERNGRAD_SIMD Ints with_nan(Ints bits, Floats values, int nan) {
  return _mm512_mask_set1_epi32(bits, _mm512_cmp_ps_mask(values, values, _CMP_UNORD_Q), nan);
}

TERNGRAD_SIMD void store_low_halves(unsigned char* to, Ints values) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(values));
}

TERNGRAD_SIMD void store_floats(float*, unsigned char* to, Floats values) { _mm512_storeu_ps(to, values); }
TERNGRAD_SIMD void store_floats(Half*, unsigned char* to, Floats values) {
  const __m256i rounded = _mm512_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  store_low_halves(to, with_nan(_mm512_cvtepu16_epi32(rounded), values, kNaNHalf));
}
TERNGRAD_SIMD void store_floats(BFloat16*, unsigned char* to, Floats values) {
  const Ints bits = _mm512_castps_si512(values);
  const Ints odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const Ints rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  store_low_halves(to, with_nan(_mm512_srli_epi32(rounded, 16), values, kNaNBFloat16));
}
TERNGRAD_SIMD void store_floats(double*, unsigned char* to, Floats values) {
  for (int half = 0; half < 2; ++half) {
    const __m512d wide = _mm512_cvtps_pd(half ? _mm512_extractf32x8_ps(values, 1) : _mm512_castps512_ps256(values));
    const __mmask8 unordered = _mm512_cmp_pd_mask(wide, wide, _CMP_UNORD_Q);
    const __m512i nan = _mm512_set1_epi64(static_cast<long long>(kNaN64));
    _mm512_storeu_pd(to + 64 * half, _mm512_mask_mov_pd(wide, unordered, _mm512_castsi512_pd(nan)));
  }
}

constexpr uintptr_t kStreamAlignment = 16;
TERNGRAD_SIMD void stream_floats(float* to, Floats values) {
  _mm_stream_ps(to, _mm512_castps512_ps128(values));
  _mm_stream_ps(to + 4, _mm512_extractf32x4_ps(values, 1));
  _mm_stream_ps(to + 8, _mm512_extractf32x4_ps(values, 2));
  _mm_stream_ps(to + 12, _mm512_extractf32x4_ps(values, 3));
}
TERNGRAD_SIMD void stores_end() { _mm_sfence(); }

TERNGRAD_SIMD void store_bytes(void* to, Bytes bytes) { _mm512_storeu_si512(to, bytes); }

TERNGRAD_SIMD Bytes load_bytes(const void* from) { return _mm512_loadu_si512(from); }

TERNGRAD_SIMD Ints load_bytes_wide(const void* from) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(from)));
}

TERNGRAD_SIMD Shorts load_bytes16(const void* from) {
  return _mm512_cvtepu8_epi16(_mm256_loadu_si256(static_cast<const __m256i*>(from)));
}

// ---- arithmetic

TERNGRAD_SIMD Floats all_floats(float x) { return _mm512_set1_ps(x); }
TERNGRAD_SIMD Ints zero_ints() { return _mm512_setzero_si512(); }
TERNGRAD_SIMD Bytes all_bytes(uint32_t x) { return _mm512_set1_epi8(static_cast<char>(x)); }
TERNGRAD_SIMD Ints bits(Floats x) { return _mm512_castps_si512(x); }
TERNGRAD_SIMD Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
TERNGRAD_SIMD Floats subtract(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
TERNGRAD_SIMD Floats multiply(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
TERNGRAD_SIMD Floats fused(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
TERNGRAD_SIMD Floats magnitude(Floats x) {
  return _mm512_and_ps(x, _mm512_castsi512_ps(_mm512_set1_epi32(0x7fffffff)));
}
TERNGRAD_SIMD Ints larger(Ints a, Ints b) { return _mm512_max_epi32(a, b); }
TERNGRAD_SIMD Bytes merge(Bytes a, Bytes b) { return _mm512_or_si512(a, b); }
TERNGRAD_SIMD Bytes add_bytes(Bytes a, Bytes b) { return _mm512_add_epi8(a, b); }

template <class... Values>
TERNGRAD_SIMD Bytes sixteen_bytes(Values... values) {
  return _mm512_broadcast_i32x4(_mm_setr_epi8(static_cast<char>(values)...));
}
TERNGRAD_SIMD Shorts look_up_bytes(Bytes table, Shorts indices) { return _mm512_shuffle_epi8(table, indices); }

TERNGRAD_SIMD Shorts all_lanes16(uint32_t x) { return _mm512_set1_epi16(static_cast<short>(x)); }
TERNGRAD_SIMD Shorts add16(Shorts a, Shorts b) { return _mm512_add_epi16(a, b); }
TERNGRAD_SIMD Shorts subtract16(Shorts a, Shorts b) { return _mm512_sub_epi16(a, b); }
template <int Bits>
TERNGRAD_SIMD Shorts shift_left16(Shorts x) {
  return _mm512_slli_epi16(x, Bits);
}
TERNGRAD_SIMD Shorts high_products16(Shorts a, Shorts b) { return _mm512_mulhi_epu16(a, b); }
TERNGRAD_SIMD void widen16(Shorts x, Ints* first, Ints* second) {
  *first = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(x));
  *second = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(x, 1));
}

TERNGRAD_SIMD Floats smaller_or_second(Floats a, Floats b) { return _mm512_min_ps(a, b); }

TERNGRAD_SIMD Floats clipped(Floats x, Floats limit) {
  const __mmask16 beyond = _mm512_cmp_ps_mask(magnitude(x), limit, _CMP_GT_OQ);
  const Floats sign = _mm512_and_ps(x, _mm512_castsi512_ps(_mm512_set1_epi32(INT32_MIN)));
  return _mm512_mask_or_ps(x, beyond, limit, sign);
}

TERNGRAD_SIMD Ints to_threshold(Floats scaled) { return _mm512_cvttps_epi32(scaled); }

TERNGRAD_SIMD Ints fires(Ints uniform, Ints threshold) { return _mm512_sub_epi32(uniform, threshold); }

TERNGRAD_SIMD int32_t largest_lane(Ints x) { return _mm512_reduce_max_epi32(x); }

TERNGRAD_SIMD float tree_sum(Floats x) {
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}

// ---- trits

TERNGRAD_SIMD Signs signs(Ints a, Ints b, Ints c, Ints d) {
  return _mm512_packs_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
}

TERNGRAD_SIMD Bytes choose(Signs fire, Signs negative, Bytes plus, Bytes minus) {
  const Bytes code = _mm512_mask_mov_epi8(plus, _mm512_movepi8_mask(negative), minus);
  return _mm512_maskz_mov_epi8(_mm512_movepi8_mask(fire), code);
}

TERNGRAD_SIMD Bytes in_order(Bytes x) {
  return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), x);
}

TERNGRAD_SIMD Bytes nibbles(Bytes low, Bytes high) {
  const Bytes mask = _mm512_set1_epi8(15);
  return _mm512_or_si512(_mm512_and_si512(low, mask), _mm512_andnot_si512(mask, _mm512_slli_epi16(high, 4)));
}

TERNGRAD_SIMD Bytes low_nibble(Bytes x) { return _mm512_and_si512(x, _mm512_set1_epi8(15)); }
TERNGRAD_SIMD Bytes high_nibble(Bytes x) { return low_nibble(_mm512_srli_epi16(x, 4)); }

TERNGRAD_SIMD Floats four_floats(float a, float b, float c, float d) { return _mm512_setr4_ps(a, b, c, d); }

template <int Bit>
TERNGRAD_SIMD Floats look_up(Floats table, Ints codes) {
  return _mm512_permutevar_ps(table, _mm512_srli_epi32(codes, Bit));
}

// ---- random bits

constexpr int64_t kBlocks = 8;
constexpr int64_t kRegisters = 2;
using Products = Ints;

TERNGRAD_SIMD Ints all_words(uint32_t x) { return _mm512_set1_epi64(static_cast<long long>(x)); }
TERNGRAD_SIMD Ints products(Ints a, Ints b) { return _mm512_mul_epu32(a, b); }
TERNGRAD_SIMD Ints lower_words(Ints x) { return x; }
TERNGRAD_SIMD Ints upper_words(Ints x) { return _mm512_srli_epi64(x, 32); }
TERNGRAD_SIMD Ints exclusive_or(Ints a, Ints b) { return _mm512_xor_si512(a, b); }
TERNGRAD_SIMD Ints exclusive_or(Ints a, Ints b, Ints c) { return _mm512_ternarylogic_epi64(a, b, c, 0x96); }

TERNGRAD_SIMD Ints block_numbers(uint32_t first) {
  return _mm512_add_epi64(all_words(first), _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7));
}

struct Words {
  Ints w[4];
};

template <int Row>
TERNGRAD_SIMD void uniforms(const Words (&words)[kRegisters], Ints (&uniform)[4]) {
  const Ints first = _mm512_broadcast_i32x4(_mm_setr_epi8(6, 5, 4, 0, 7, 6, 5, 1, 4, 7, 6, 2, 5, 4, 7, 3));
  const Ints second = _mm512_add_epi8(first, _mm512_set1_epi8(8));
#pragma GCC unroll 2
  for (int i = 0; i < kRegisters; ++i) {
    const Ints* w = words[i].w;
    const Ints y = _mm512_xor_si512(w[(Row + 1) % 4], w[(Row + 2) % 4]);
    const Ints pairs = _mm512_mask_shuffle_epi32(w[Row], 0xaaaa, y, _MM_PERM_CCAA);
    uniform[2 * i] = _mm512_srli_epi32(_mm512_shuffle_epi8(pairs, first), 1);
    uniform[2 * i + 1] = _mm512_srli_epi32(_mm512_shuffle_epi8(pairs, second), 1);
  }
}

}  // namespace
}  // namespace avx512
}  // namespace terngrad
