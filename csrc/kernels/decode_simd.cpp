#include "dispatch_types.h"
#include "kernels.h"
#include "simd.h"
#include "tiles.h"

namespace terngrad {
namespace TERNGRAD_ISA {
namespace {

constexpr int64_t kTwoBitTile = Tiled<Packing::two_bit>::tile;

// From here on an output does not stay in the last-level cache anyway: writing around it saves reading it first.
constexpr int64_t kStreamBytes = int64_t{16} << 20;

template <class T>
TERNGRAD_SIMD bool streams(const void* out, int64_t elements) {
  const bool is_float = sizeof(T) == sizeof(float);  // the other types have other sizes
  return is_float && elements * static_cast<int64_t>(sizeof(T)) >= kStreamBytes &&
         reinterpret_cast<uintptr_t>(out) % kStreamAlignment == 0;
}

template <class T>
TERNGRAD_SIMD void decode_two_bit_tiles(const uint8_t* payload, int64_t tiles, Floats table, void* out) {
  for (int64_t tile = 0; tile < tiles; ++tile) {
    for (int64_t column = 0; column < kColumns; column += kLanes) {
      const Ints codes = load_bytes_wide(payload + tile * kColumns + column);
      const int64_t index = tile * kTwoBitTile + column;
      store_floats<T>(out, index, look_up<0>(table, codes));
      store_floats<T>(out, index + kColumns, look_up<1>(table, codes));
      store_floats<T>(out, index + 2 * kColumns, look_up<2>(table, codes));
      store_floats<T>(out, index + 3 * kColumns, look_up<3>(table, codes));
    }
  }
}

template <int Row>
TERNGRAD_SIMD void stream_two_bit_row(const uint8_t* bytes, Floats table, float* out) {
  for (int64_t column = 0; column < kColumns; column += kLanes) {
    stream_floats(out + Row * kColumns + column, look_up<Row>(table, load_bytes_wide(bytes + column)));
  }
}

// The same for float32, past the caches and in the order of addresses, which costs looking at each byte four times.
TERNGRAD_SIMD void stream_two_bit_tiles(const uint8_t* payload, int64_t tiles, Floats table, void* out) {
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const uint8_t* bytes = payload + tile * kColumns;
    float* to = static_cast<float*>(out) + tile * kTwoBitTile;
    stream_two_bit_row<0>(bytes, table, to);
    stream_two_bit_row<1>(bytes, table, to);
    stream_two_bit_row<2>(bytes, table, to);
    stream_two_bit_row<3>(bytes, table, to);
  }
  stores_end();
}

// Calls f(start, count, trits) for each unit of a ternary payload, unpacked.
template <class F>
TERNGRAD_SIMD void for_each_unit(const uint8_t* payload, Packing packing, int64_t n, const F& f) {
  int8_t trits[kUnit];
  for (int64_t start = 0; start < n; start += kUnit) {
    const int64_t count = smaller(kUnit, n - start);
    TERNGRAD_ISA::unpack(payload + payload_bytes(packing, start), count, packing, trits);
    f(start, count, trits);
  }
}

template <class T>
TERNGRAD_SIMD void decode_trits(const int8_t* trits, int64_t n, Floats table, void* out) {
  const int64_t whole = n / kLanes * kLanes;
  // A trit's two lowest bits are its two-bit code.
  for (int64_t i = 0; i < whole; i += kLanes) store_floats<T>(out, i, look_up<0>(table, load_bytes_wide(trits + i)));
  if (whole == n) return;
  int8_t rest_trits[kLanes] = {};
  T rest[kLanes];
  memcpy(rest_trits, trits + whole, static_cast<size_t>(n - whole));
  store_floats<T>(rest, 0, look_up<0>(table, load_bytes_wide(rest_trits)));
  memcpy(static_cast<unsigned char*>(out) + whole * static_cast<int64_t>(sizeof(T)), rest,
         static_cast<size_t>(n - whole) * sizeof(T));
}

template <class T>
void decode_counts(const uint8_t* payload, Packing packing, int64_t n, float worth, void* out) {
  const Floats factor = all_floats(worth);
  float values[kUnit];
  for (int64_t start = 0; start < n; start += kUnit) {
    const int64_t count = smaller(kUnit, n - start);
    to_floats(payload + payload_bytes(packing, start), packing, count, TERNGRAD_ISA::unpack, values);
    const int64_t whole = count / kLanes * kLanes;
    for (int64_t i = 0; i < whole; i += kLanes) {
      store_floats<T>(out, start + i, multiply(factor, load_floats<float>(values, i)));
    }
    for (int64_t i = whole; i < count; ++i) store_float<T>(out, start + i, worth * values[i]);
  }
}

template <class T>
TERNGRAD_SIMD void decode_as(const uint8_t* payload, Packing packing, int64_t n, float worth, void* out) {
  if (packing == Packing::float32) return decode_carried<T>(payload, n, worth, out);
  if (is_counts(packing)) return decode_counts<T>(payload, packing, n, worth, out);
  const Floats table = worth_table(worth);
  const int64_t tiles = packing == Packing::two_bit ? n / kTwoBitTile : 0;
  const int64_t whole = tiles * kTwoBitTile;
  if (streams<T>(out, whole)) {
    stream_two_bit_tiles(payload, tiles, table, out);
  } else {
    decode_two_bit_tiles<T>(payload, tiles, table, out);
  }
  auto* rest = static_cast<unsigned char*>(out) + whole * static_cast<int64_t>(sizeof(T));
  for_each_unit(payload + payload_bytes(packing, whole), packing, n - whole,
                [&](int64_t start, int64_t count, const int8_t* trits) {
                  decode_trits<T>(trits, count, table, rest + start * static_cast<int64_t>(sizeof(T)));
                });
}

// Adds all terms to one row of a two-bit tile, some columns at a time, whose sums stay in registers. Row by row, so
// that `out` is written in the order of its addresses.
template <class T, int Row>
TERNGRAD_SIMD void add_two_bit_row(const Terms& terms, int64_t tile, bool fresh, bool past_caches, void* out) {
  constexpr int64_t kVectors = 4;
  for (int64_t column = 0; column < kColumns; column += kVectors * kLanes) {
    const int64_t index = tile * kTwoBitTile + Row * kColumns + column;
    Floats sums[kVectors];
#pragma GCC unroll 4
    for (int64_t i = 0; i < kVectors; ++i) {
      sums[i] = fresh ? all_floats(0.0f) : load_floats<T>(out, index + i * kLanes);
    }
    for (int64_t term = 0; term < terms.count; ++term) {
      const Floats table = worth_table(terms.worth[term]);
      const uint8_t* bytes = terms.payloads[term] + tile * kColumns + column;
#pragma GCC unroll 4
      for (int64_t i = 0; i < kVectors; ++i) {
        sums[i] = add(sums[i], look_up<Row>(table, load_bytes_wide(bytes + i * kLanes)));
      }
    }
#pragma GCC unroll 4
    for (int64_t i = 0; i < kVectors; ++i) {
      if (past_caches) {
        stream_floats(static_cast<float*>(out) + index + i * kLanes, sums[i]);
      } else {
        store_floats<T>(out, index + i * kLanes, sums[i]);
      }
    }
  }
}

// Everything but whole two-bit tiles: a unit's sums in float32, term after term.
template <class T>
TERNGRAD_SIMD void add_units(const Terms& terms, Packing packing, int64_t from, int64_t n, bool fresh, void* out) {
  float sums[kUnit];
  float values[kUnit];
  for (int64_t start = from; start < n; start += kUnit) {
    const int64_t count = smaller(kUnit, n - start);
    for (int64_t i = 0; i < count; ++i) sums[i] = fresh ? 0.0f : load_float<T>(out, start + i);
    for (int64_t term = 0; term < terms.count; ++term) {
      const uint8_t* payload = terms.payloads[term] + payload_bytes(packing, start);
      const float worth = terms.worth[term];
      if (packing == Packing::float32) {
        for (int64_t i = 0; i < count; ++i) sums[i] = fmaf(worth, load<float>(payload, i), sums[i]);
      } else {
        to_floats(payload, packing, count, TERNGRAD_ISA::unpack, values);
        for (int64_t i = 0; i < count; ++i) sums[i] = fmaf(worth, values[i], sums[i]);
      }
    }
    for (int64_t i = 0; i < count; ++i) store_float<T>(out, start + i, sums[i]);
  }
}

}  // namespace

void decode(const uint8_t* payload, Packing packing, int64_t n, float worth, DType dtype, void* out) {
  with_dtype(dtype, [&](auto stored) { decode_as<typename decltype(stored)::type>(payload, packing, n, worth, out); });
}

void decode_sum(const Terms& terms, Packing packing, int64_t n, bool fresh, DType dtype, void* out) {
  with_dtype(dtype, [&](auto stored) {
    using T = typename decltype(stored)::type;
    const int64_t tiles = packing == Packing::two_bit ? n / kTwoBitTile : 0;
    // What is added to has been read, so it is in the caches.
    const bool past_caches = fresh && streams<T>(out, tiles * kTwoBitTile);
    for (int64_t tile = 0; tile < tiles; ++tile) {
      add_two_bit_row<T, 0>(terms, tile, fresh, past_caches, out);
      add_two_bit_row<T, 1>(terms, tile, fresh, past_caches, out);
      add_two_bit_row<T, 2>(terms, tile, fresh, past_caches, out);
      add_two_bit_row<T, 3>(terms, tile, fresh, past_caches, out);
    }
    if (past_caches) stores_end();
    add_units<T>(terms, packing, tiles * kTwoBitTile, n, fresh, out);
  });
}

}  // namespace TERNGRAD_ISA
}  // namespace terngrad
