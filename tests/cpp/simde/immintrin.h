// Around the compiler's own: AVX-512 intrinsics become code for any processor with AVX2, by SIMDe. Where this folder
// comes first on the include path the kernels are built so, and need not know (CMakeLists.txt, TERNGRAD_KERNELS_SIMDE).
#include_next <immintrin.h>

#pragma once

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

// What SIMDe 0.8.2 lacks, each by halves. (Where it has learnt one, its own is taken.)
#define TERNGRAD_LOW(x) _mm512_castsi512_si256(x)
#define TERNGRAD_HIGH(x) _mm512_extracti64x4_epi64(x, 1)
#define TERNGRAD_BOTH(low, high) _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1)

#if !defined(_mm512_cvtepu8_epi32)
static inline __m512i terngrad_cvtepu8_epi32(__m128i x) {
  return TERNGRAD_BOTH(_mm256_cvtepu8_epi32(x), _mm256_cvtepu8_epi32(_mm_srli_si128(x, 8)));
}
#define _mm512_cvtepu8_epi32 terngrad_cvtepu8_epi32
#endif
#if !defined(_mm512_cvtepu8_epi16)
static inline __m512i terngrad_cvtepu8_epi16(__m256i x) {
  return TERNGRAD_BOTH(_mm256_cvtepu8_epi16(_mm256_castsi256_si128(x)),
                       _mm256_cvtepu8_epi16(_mm256_extracti128_si256(x, 1)));
}
#define _mm512_cvtepu8_epi16 terngrad_cvtepu8_epi16
#endif
#if !defined(_mm512_mulhi_epu16)
static inline __m512i terngrad_mulhi_epu16(__m512i a, __m512i b) {
  return TERNGRAD_BOTH(_mm256_mulhi_epu16(TERNGRAD_LOW(a), TERNGRAD_LOW(b)),
                       _mm256_mulhi_epu16(TERNGRAD_HIGH(a), TERNGRAD_HIGH(b)));
}
#define _mm512_mulhi_epu16 terngrad_mulhi_epu16
#endif
#if !defined(_mm512_cvtepi32_epi16)
static inline __m256i terngrad_cvtepi32_epi16(__m512i x) {
  const __m256i low = _mm256_and_si256(TERNGRAD_LOW(x), _mm256_set1_epi32(0xffff));
  const __m256i high = _mm256_and_si256(TERNGRAD_HIGH(x), _mm256_set1_epi32(0xffff));
  return _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0xd8);
}
#define _mm512_cvtepi32_epi16 terngrad_cvtepi32_epi16
#endif
#if !defined(_mm512_cvtpd_ps)
static inline __m256 terngrad_cvtpd_ps(__m512d x) {
  const __m512i bits = _mm512_castpd_si512(x);
  return _mm256_set_m128(_mm256_cvtpd_ps(_mm256_castsi256_pd(TERNGRAD_HIGH(bits))),
                         _mm256_cvtpd_ps(_mm256_castsi256_pd(TERNGRAD_LOW(bits))));
}
#define _mm512_cvtpd_ps terngrad_cvtpd_ps
#endif
#if !defined(_mm512_cvtps_pd)
static inline __m512d terngrad_cvtps_pd(__m256 x) {
  const __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(x));
  const __m256d high = _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1));
  return _mm512_castsi512_pd(TERNGRAD_BOTH(_mm256_castpd_si256(low), _mm256_castpd_si256(high)));
}
#define _mm512_cvtps_pd terngrad_cvtps_pd
#endif
#if !defined(_mm512_cvtps_ph)
#define _mm512_cvtps_ph(x, rounding)                                                                            \
  _mm256_set_m128i(_mm256_cvtps_ph(_mm256_castsi256_ps(TERNGRAD_HIGH(_mm512_castps_si512(x))), (rounding) & 7), \
                   _mm256_cvtps_ph(_mm256_castsi256_ps(TERNGRAD_LOW(_mm512_castps_si512(x))), (rounding) & 7))
#endif
#if !defined(_mm512_mask_shuffle_epi32)
#define _mm512_mask_shuffle_epi32(x, mask, y, places)                                    \
  _mm512_mask_blend_epi32(mask, x,                                                       \
                          TERNGRAD_BOTH(_mm256_shuffle_epi32(TERNGRAD_LOW(y), (places)), \
                                        _mm256_shuffle_epi32(TERNGRAD_HIGH(y), (places))))
#endif
#if !defined(_mm512_permutevar_ps)
static inline __m512 terngrad_permutevar_ps(__m512 x, __m512i index) {
  const __m512i bits = _mm512_castps_si512(x);
  const __m256 low = _mm256_permutevar_ps(_mm256_castsi256_ps(TERNGRAD_LOW(bits)), TERNGRAD_LOW(index));
  const __m256 high = _mm256_permutevar_ps(_mm256_castsi256_ps(TERNGRAD_HIGH(bits)), TERNGRAD_HIGH(index));
  return _mm512_castsi512_ps(TERNGRAD_BOTH(_mm256_castps_si256(low), _mm256_castps_si256(high)));
}
#define _mm512_permutevar_ps terngrad_permutevar_ps
#endif
