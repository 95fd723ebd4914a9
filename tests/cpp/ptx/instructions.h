// What the instructions of PTX compute that C++ has no operator for, by NVIDIA's description of them (PTX ISA 9.0,
// "Instruction Set"), on registers as they are: unsigned words, whatever an instruction takes them for.
//
// NaN: an arithmetic result that is one is canonical (0x7fffffff, 0x7fffffffffffffff); moves, abs and neg keep its
// bits.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

namespace ptx {

using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using s8 = int8_t;
using s16 = int16_t;
using s32 = int32_t;
using s64 = int64_t;

#define PTX_INSTRUCTION [[maybe_unused]] static inline __attribute__((always_inline))

template <class To, class From>
PTX_INSTRUCTION To bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "the same bits");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

PTX_INSTRUCTION float as_f32(u32 x) { return bits<float>(x); }
PTX_INSTRUCTION double as_f64(u64 x) { return bits<double>(x); }
PTX_INSTRUCTION u32 result(float x) { return x == x ? bits<u32>(x) : 0x7fffffffu; }
PTX_INSTRUCTION u64 result(double x) { return x == x ? bits<u64>(x) : 0x7fffffffffffffffu; }

// ---- integers

__extension__ using s128 = __int128;
__extension__ using u128 = unsigned __int128;

template <class T>
PTX_INSTRUCTION T clamped(s128 x) {
  constexpr s128 least = std::numeric_limits<T>::min();
  constexpr s128 most = std::numeric_limits<T>::max();
  return static_cast<T>(x < least ? least : x > most ? most : x);
}

template <class T>
PTX_INSTRUCTION T inverted(T x) {
  return static_cast<T>(~x);
}
PTX_INSTRUCTION bool inverted(bool x) { return !x; }

template <class T>
PTX_INSTRUCTION T mul_hi(T a, T b) {
  using Wide = std::conditional_t<std::is_signed_v<T>, s128, u128>;
  return static_cast<T>(static_cast<Wide>(a) * static_cast<Wide>(b) >> (8 * sizeof(T)));
}

// Shift amounts beyond the width count as the width.
template <class T>
PTX_INSTRUCTION T shl(T x, u32 n) {
  return n < 8 * sizeof(T) ? static_cast<T>(static_cast<u64>(x) << n) : T{0};
}
template <class T>
PTX_INSTRUCTION T shr(T x, u32 n) {
  constexpr u32 width = 8 * sizeof(T);
  if (n < width) return static_cast<T>(x >> n);
  return static_cast<T>(x < 0 ? -1 : 0);
}

// The high word of b:a shifted left, or the low word of it shifted right.
PTX_INSTRUCTION u32 shf_l(u32 a, u32 b, u32 n) { return static_cast<u32>((static_cast<u64>(b) << 32 | a) << n >> 32); }
PTX_INSTRUCTION u32 shf_r(u32 a, u32 b, u32 n) { return static_cast<u32>((static_cast<u64>(b) << 32 | a) >> n); }
PTX_INSTRUCTION u32 wrap(u32 n) { return n & 31; }
PTX_INSTRUCTION u32 clamp(u32 n) { return n < 32 ? n : 32; }

template <class T>
PTX_INSTRUCTION T bfi(T field, T into, u32 position, u32 length) {
  constexpr u32 width = 8 * sizeof(T);
  position &= 255;
  length &= 255;
  if (position >= width || length == 0) return into;
  const T ones = static_cast<T>(~T{0}) >> (length < width ? width - length : 0);
  const T mask = static_cast<T>(ones << position);
  return (into & ~mask) | (static_cast<T>(field << position) & mask);
}

// Bits beyond the width are the sign: that of the field's last bit, or of the word's where the field passes its end.
template <class T>
PTX_INSTRUCTION T bfe(T x, u32 position, u32 length) {
  constexpr u32 width = 8 * sizeof(T);
  using U = std::make_unsigned_t<T>;
  position &= 255;
  length &= 255;
  if (length == 0) return 0;
  const u32 last = position + length - 1 < width - 1 ? position + length - 1 : width - 1;
  const bool sign = std::is_signed_v<T> && (static_cast<U>(x) >> last & 1);
  U found = position < width ? static_cast<U>(static_cast<U>(x) >> position) : U{0};
  const u32 have = position < width ? (length < width - position ? length : width - position) : 0;
  const U ones = have == 0 ? U{0} : static_cast<U>(static_cast<U>(~U{0}) >> (width - have));
  found &= ones;
  return static_cast<T>(sign ? found | static_cast<U>(~ones) : found);
}

PTX_INSTRUCTION u32 clz(u32 x) { return x == 0 ? 32 : static_cast<u32>(__builtin_clz(x)); }
PTX_INSTRUCTION u32 clz(u64 x) { return x == 0 ? 64 : static_cast<u32>(__builtin_clzll(x)); }
PTX_INSTRUCTION u32 popc(u64 x) { return static_cast<u32>(__builtin_popcountll(x)); }
template <class T>
PTX_INSTRUCTION T brev(T x) {
  T to = 0;
  for (u32 i = 0; i < 8 * sizeof(T); ++i) to = static_cast<T>(to << 1 | (x >> i & 1));
  return to;
}
// The highest bit that is not the sign's; all ones where there is none. `shiftamt`: how far it is from the top.
template <class T>
PTX_INSTRUCTION u32 bfind(T x, bool shiftamt) {
  constexpr u32 width = 8 * sizeof(T);
  std::make_unsigned_t<T> seen = static_cast<std::make_unsigned_t<T>>(std::is_signed_v<T> && x < 0 ? ~x : x);
  if (seen == 0) return ~0u;
  const u32 place = width - 1 - clz(seen);
  return shiftamt ? width - 1 - place : place;
}

// A byte of b:a for each nibble of the selector, or eight times that byte's sign.
PTX_INSTRUCTION u32 prmt_byte(u64 bytes, u32 nibble) {
  const u32 byte = static_cast<u32>(bytes >> (8 * (nibble & 7))) & 255;
  return nibble & 8 ? (byte & 128 ? 255u : 0u) : byte;
}
PTX_INSTRUCTION u32 prmt(u32 a, u32 b, u32 selector) {
  const u64 bytes = static_cast<u64>(b) << 32 | a;
  return prmt_byte(bytes, selector & 15) | prmt_byte(bytes, selector >> 4 & 15) << 8 |
         prmt_byte(bytes, selector >> 8 & 15) << 16 | prmt_byte(bytes, selector >> 12 & 15) << 24;
}

// Row i of the table is bit i, for a's, b's and c's bits as 4 a + 2 b + c.
PTX_INSTRUCTION u32 lop3(u32 a, u32 b, u32 c, u32 table) {
  u32 to = 0;
  for (u32 i = 0; i < 8; ++i) {
    if (table >> i & 1) to |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
  }
  return to;
}

// Two halves at a time.
template <class T, class F>
PTX_INSTRUCTION u32 halves(u32 a, u32 b, const F& f) {
  return static_cast<u16>(f(static_cast<T>(a), static_cast<T>(b))) |
         static_cast<u32>(static_cast<u16>(f(static_cast<T>(a >> 16), static_cast<T>(b >> 16)))) << 16;
}

// ---- floating point

template <class T>
PTX_INSTRUCTION T sign(T) {
  return static_cast<T>(T{1} << (8 * sizeof(T) - 1));
}

// The other of two where one is NaN; -0 is less than +0.
template <class F>
PTX_INSTRUCTION auto smallest(F a, F b) {
  if (a != a || b < a || (a == b && std::signbit(b))) return result(b);
  return result(a);
}
template <class F>
PTX_INSTRUCTION auto largest(F a, F b) {
  if (a != a || b > a || (a == b && std::signbit(a))) return result(b);
  return result(a);
}

// To [0, 1]; NaN becomes +0.
template <class F>
PTX_INSTRUCTION F saturated(F x) {
  return x > F{0} ? (x < F{1} ? x : F{1}) : F{0};
}

enum class Round { nearest, zero, down, up };

template <class F>
PTX_INSTRUCTION F rounded(F x, Round how) {
  switch (how) {
    case Round::nearest: return std::nearbyint(x);
    case Round::zero: return std::trunc(x);
    case Round::down: return std::floor(x);
    default: return std::ceil(x);
  }
}

// Beyond the integer's range its nearest end. NaN becomes 0; of or to 64 bits the highest bit alone.
template <class T, class F>
PTX_INSTRUCTION T to_integer(F x, Round how) {
  if (x != x) {
    const bool is_zero = sizeof(F) < 8 && sizeof(T) < 8;
    return is_zero ? T{0} : static_cast<T>(static_cast<std::make_unsigned_t<T>>(1) << (8 * sizeof(T) - 1));
  }
  const F whole = rounded(x, how);
  // 2^(bits of magnitude) is exact in either type; the largest integer may not be.
  const F end = std::ldexp(F{1}, std::numeric_limits<T>::digits);
  if (whole >= end) return std::numeric_limits<T>::max();
  if (std::is_signed_v<T> ? whole < -end : whole < F{0}) return std::numeric_limits<T>::min();
  return static_cast<T>(whole);
}

PTX_INSTRUCTION float from_f16(u16 x) {
  const int exponent = x >> 10 & 31;
  const float fraction = static_cast<float>(x & 1023);
  float magnitude;
  if (exponent == 31) {
    if ((x & 1023) != 0) return as_f32(0x7fffffffu);
    magnitude = std::numeric_limits<float>::infinity();
  } else {
    magnitude = exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024.0f + fraction, exponent - 25);
  }
  return x & 0x8000 ? -magnitude : magnitude;
}

// To the nearest, ties to even: a quantum is 2^-24, or 2^-10 of the power of two below.
PTX_INSTRUCTION u16 to_f16(float x) {
  if (x != x) return 0x7fff;
  const u16 sign = static_cast<u16>(std::signbit(x) ? 0x8000 : 0);
  const float magnitude = std::fabs(x);
  if (magnitude >= 65520.0f) return sign | 0x7c00;
  int exponent = 0;
  std::frexp(magnitude, &exponent);
  const int quantum = magnitude < 0x1p-14f ? -24 : exponent - 11;
  const auto steps = static_cast<u32>(std::nearbyint(std::ldexp(magnitude, -quantum)));
  // 1024 steps carry into the exponent by themselves.
  return static_cast<u16>(sign | (quantum == -24 ? steps : static_cast<u32>(quantum + 24) * 1024 + steps));
}

}  // namespace ptx
