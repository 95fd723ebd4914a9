// The named vector operations of simd.h for AArch64 Advanced SIMD, which every AArch64 processor has (Armv8.0).
#pragma once

#include <arm_neon.h>

#include "../contract/message.h"
#include "../contract/ternarize.h"

namespace terngrad {
namespace neon {
namespace {

constexpr int64_t kLanes = 4;

using Floats = float32x4_t;
using Ints = uint32x4_t;
using Shorts = uint16x8_t;
using Bytes = uint8x16_t;
using Signs = uint8x16_t;

// ---- memory: bytes, which assume no alignment

TERNGRAD_SIMD Floats load_floats(const float*, const unsigned char* from) {
  return vreinterpretq_f32_u8(vld1q_u8(from));
}
TERNGRAD_SIMD Floats load_floats(const Half*, const unsigned char* from) {
  return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(from)));
}
TERNGRAD_SIMD Floats load_floats(const BFloat16*, const unsigned char* from) {
  return vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(vld1_u8(from)), 16));
}
TERNGRAD_SIMD Floats load_floats(const double*, const unsigned char* from) {
  const float32x2_t low = vcvt_f32_f64(vreinterpretq_f64_u8(vld1q_u8(from)));
  return vcvt_high_f32_f64(low, vreinterpretq_f64_u8(vld1q_u8(from + 16)));
}

// Four 16-bit results, NaNs of `values` as the bits of `nan`.
TERNGRAD_SIMD void store_halves(unsigned char* to, uint16x4_t halves, Floats values, uint16_t nan) {
  const uint16x4_t ordered = vmovn_u32(vceqq_f32(values, values));
  vst1_u8(to, vreinterpret_u8_u16(vbsl_u16(ordered, halves, vdup_n_u16(nan))));
}

TERNGRAD_SIMD void store_floats(float*, unsigned char* to, Floats values) {
  vst1q_u8(to, vreinterpretq_u8_f32(values));
}
TERNGRAD_SIMD void store_floats(Half*, unsigned char* to, Floats values) {
  store_halves(to, vreinterpret_u16_f16(vcvt_f16_f32(values)), values, kNaNHalf);
}
TERNGRAD_SIMD void store_floats(BFloat16*, unsigned char* to, Floats values) {
  const Ints bits = vreinterpretq_u32_f32(values);
  const Ints odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
  const Ints rounded = vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), odd);
  store_halves(to, vshrn_n_u32(rounded, 16), values, kNaNBFloat16);
}
TERNGRAD_SIMD void store_floats(double*, unsigned char* to, Floats values) {
  const float64x2_t wide[2] = {vcvt_f64_f32(vget_low_f32(values)), vcvt_high_f64_f32(values)};
  for (int half = 0; half < 2; ++half) {
    const uint64x2_t ordered = vceqq_f64(wide[half], wide[half]);
    const uint64x2_t bits = vbslq_u64(ordered, vreinterpretq_u64_f64(wide[half]), vdupq_n_u64(kNaN64));
    vst1q_u8(to + 16 * half, vreinterpretq_u8_u64(bits));
  }
}

// No store of one register goes past the caches; cores do by themselves what is written line by line.
constexpr uintptr_t kStreamAlignment = 16;
TERNGRAD_SIMD void stream_floats(float* to, Floats values) { vst1q_f32(to, values); }
TERNGRAD_SIMD void stores_end() {}

TERNGRAD_SIMD void store_bytes(void* to, Bytes bytes) { vst1q_u8(static_cast<uint8_t*>(to), bytes); }

TERNGRAD_SIMD Bytes load_bytes(const void* from) { return vld1q_u8(static_cast<const uint8_t*>(from)); }

TERNGRAD_SIMD Ints load_bytes_wide(const void* from) {
  uint32_t four;
  memcpy(&four, from, sizeof four);
  return vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(four))));
}

TERNGRAD_SIMD Shorts load_bytes16(const void* from) {
  return vmovl_u8(vld1_u8(static_cast<const unsigned char*>(from)));
}

// ---- arithmetic

TERNGRAD_SIMD Floats all_floats(float x) { return vdupq_n_f32(x); }
TERNGRAD_SIMD Ints zero_ints() { return vdupq_n_u32(0); }
TERNGRAD_SIMD Bytes all_bytes(uint32_t x) { return vdupq_n_u8(static_cast<uint8_t>(x)); }
TERNGRAD_SIMD Ints bits(Floats x) { return vreinterpretq_u32_f32(x); }
TERNGRAD_SIMD Floats add(Floats a, Floats b) { return vaddq_f32(a, b); }
TERNGRAD_SIMD Floats subtract(Floats a, Floats b) { return vsubq_f32(a, b); }
TERNGRAD_SIMD Floats multiply(Floats a, Floats b) { return vmulq_f32(a, b); }
TERNGRAD_SIMD Floats fused(Floats a, Floats b, Floats c) { return vfmaq_f32(c, a, b); }
TERNGRAD_SIMD Floats magnitude(Floats x) { return vabsq_f32(x); }
TERNGRAD_SIMD Ints larger(Ints a, Ints b) { return vmaxq_u32(a, b); }
TERNGRAD_SIMD Bytes merge(Bytes a, Bytes b) { return vorrq_u8(a, b); }
TERNGRAD_SIMD Bytes add_bytes(Bytes a, Bytes b) { return vaddq_u8(a, b); }

// The number where one of them is a quiet NaN, which is what arithmetic makes.
TERNGRAD_SIMD Floats smaller_or_second(Floats a, Floats b) { return vminnmq_f32(a, b); }

TERNGRAD_SIMD Floats clipped(Floats x, Floats limit) {
  const Floats signed_limit = vbslq_f32(vdupq_n_u32(0x80000000u), x, limit);
  return vbslq_f32(vcgtq_f32(magnitude(x), limit), signed_limit, x);
}

// The conversion takes NaN to 0 and what is above to 2^32 - 1, so the minimum comes first.
TERNGRAD_SIMD Ints to_threshold(Floats scaled) { return vcvtq_u32_f32(smaller_or_second(scaled, all_floats(kTwo31))); }

TERNGRAD_SIMD Ints fires(Ints uniform, Ints threshold) { return vcltq_u32(uniform, threshold); }

TERNGRAD_SIMD int32_t largest_lane(Ints x) { return static_cast<int32_t>(vmaxvq_u32(x)); }

TERNGRAD_SIMD float tree_sum(Floats x) {
  const float32x2_t sum = vadd_f32(vget_low_f32(x), vget_high_f32(x));
  return vget_lane_f32(sum, 0) + vget_lane_f32(sum, 1);
}

// ---- trits

// The top byte of each lane; they are in order already.
TERNGRAD_SIMD Signs signs(Ints a, Ints b, Ints c, Ints d) {
  const uint16x8_t low = vuzp2q_u16(vreinterpretq_u16_u32(a), vreinterpretq_u16_u32(b));
  const uint16x8_t high = vuzp2q_u16(vreinterpretq_u16_u32(c), vreinterpretq_u16_u32(d));
  return vuzp2q_u8(vreinterpretq_u8_u16(low), vreinterpretq_u8_u16(high));
}

TERNGRAD_SIMD Bytes choose(Signs fire, Signs negative, Bytes plus, Bytes minus) {
  const Bytes code = vbslq_u8(vcltzq_s8(vreinterpretq_s8_u8(negative)), minus, plus);
  return vandq_u8(vcltzq_s8(vreinterpretq_s8_u8(fire)), code);
}

TERNGRAD_SIMD Bytes in_order(Bytes x) { return x; }

TERNGRAD_SIMD Bytes nibbles(Bytes low, Bytes high) { return vsliq_n_u8(low, high, 4); }

TERNGRAD_SIMD Bytes low_nibble(Bytes x) { return vandq_u8(x, vdupq_n_u8(15)); }
TERNGRAD_SIMD Bytes high_nibble(Bytes x) { return vshrq_n_u8(x, 4); }

TERNGRAD_SIMD Shorts all_lanes16(uint32_t x) { return vdupq_n_u16(static_cast<uint16_t>(x)); }
TERNGRAD_SIMD Shorts high_products16(Shorts a, Shorts b) {
  const uint32x4_t low = vmull_u16(vget_low_u16(a), vget_low_u16(b));
  return vshrn_high_n_u32(vshrn_n_u32(low, 16), vmull_high_u16(a, b), 16);
}
TERNGRAD_SIMD Shorts add16(Shorts a, Shorts b) { return vaddq_u16(a, b); }
TERNGRAD_SIMD Shorts subtract16(Shorts a, Shorts b) { return vsubq_u16(a, b); }
template <int Bits>
TERNGRAD_SIMD Shorts shift_left16(Shorts x) {
  return vshlq_n_u16(x, Bits);
}
TERNGRAD_SIMD void widen16(Shorts x, Ints* first, Ints* second) {
  *first = vmovl_u16(vget_low_u16(x));
  *second = vmovl_high_u16(x);
}
template <class... Values>
TERNGRAD_SIMD Bytes sixteen_bytes(Values... values) {
  const uint8_t bytes[16] = {static_cast<uint8_t>(values)...};
  return vld1q_u8(bytes);
}
TERNGRAD_SIMD Bytes look_up_bytes(Bytes table, Bytes indices) { return vqtbl1q_u8(table, indices); }
TERNGRAD_SIMD Shorts look_up_bytes(Bytes table, Shorts indices) {
  return vreinterpretq_u16_u8(vqtbl1q_u8(table, vreinterpretq_u8_u16(indices)));
}

TERNGRAD_SIMD Floats four_floats(float a, float b, float c, float d) {
  const float floats[4] = {a, b, c, d};
  return vld1q_f32(floats);
}

// Lane `code` of the table is its bytes 4 * code to 4 * code + 3.
template <int Bit>
TERNGRAD_SIMD Floats look_up(Floats table, Ints codes) {
  const Ints code = vandq_u32(vshlq_u32(codes, vdupq_n_s32(-Bit)), vdupq_n_u32(3));
  const Ints places = vmlaq_u32(vdupq_n_u32(0x03020100u), code, vdupq_n_u32(0x04040404u));
  return vreinterpretq_f32_u8(vqtbl1q_u8(vreinterpretq_u8_f32(table), vreinterpretq_u8_u32(places)));
}

// ---- random bits: a word a lane

constexpr int64_t kBlocks = 4;
constexpr int64_t kRegisters = 1;

// Of blocks 0 and 1, and of 2 and 3.
struct Products {
  uint64x2_t low;
  uint64x2_t high;
};

TERNGRAD_SIMD Ints all_words(uint32_t x) { return vdupq_n_u32(x); }
TERNGRAD_SIMD Products products(Ints a, Ints b) {
  return Products{vmull_u32(vget_low_u32(a), vget_low_u32(b)), vmull_high_u32(a, b)};
}
TERNGRAD_SIMD Ints lower_words(Products x) {
  return vuzp1q_u32(vreinterpretq_u32_u64(x.low), vreinterpretq_u32_u64(x.high));
}
TERNGRAD_SIMD Ints upper_words(Products x) {
  return vuzp2q_u32(vreinterpretq_u32_u64(x.low), vreinterpretq_u32_u64(x.high));
}
TERNGRAD_SIMD Bytes exclusive_or(Bytes a, Bytes b) { return veorq_u8(a, b); }
TERNGRAD_SIMD Ints exclusive_or(Ints a, Ints b) { return veorq_u32(a, b); }
TERNGRAD_SIMD Ints exclusive_or(Ints a, Ints b, Ints c) { return veorq_u32(veorq_u32(a, b), c); }

TERNGRAD_SIMD Ints block_numbers(uint32_t first) {
  const uint32_t steps[4] = {0, 1, 2, 3};
  return vaddq_u32(vdupq_n_u32(first), vld1q_u32(steps));
}

struct Words {
  Ints w[4];
};

template <int Row>
TERNGRAD_SIMD void uniforms(const Words (&words)[kRegisters], Ints (&uniform)[4]) {
  const Ints* w = words[0].w;
  const Ints y = veorq_u32(w[(Row + 1) % 4], w[(Row + 2) % 4]);
  const uint8x16x2_t pairs = {{vreinterpretq_u8_u32(y), vreinterpretq_u8_u32(w[Row])}};
  // Column j of block 0: bytes j + 2, j + 1, j (mod 4) of y, and byte j of w on top.
  const uint8_t first[16] = {2, 1, 0, 16, 3, 2, 1, 17, 0, 3, 2, 18, 1, 0, 3, 19};
#pragma GCC unroll 4
  for (int block = 0; block < 4; ++block) {
    const Bytes places = vaddq_u8(vld1q_u8(first), vdupq_n_u8(static_cast<uint8_t>(4 * block)));
    uniform[block] = vshrq_n_u32(vreinterpretq_u32_u8(vqtbl2q_u8(pairs, places)), 1);
  }
}

}  // namespace
}  // namespace neon
}  // namespace terngrad
