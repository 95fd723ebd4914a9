#include "dispatch_types.h"
#include "kernels.h"
#include "simd.h"
#include "tiles.h"

namespace terngrad {
namespace TERNGRAD_ISA {
namespace {

// What a code is worth: two_bit has 00 -> 0, 01 -> worth, 11 -> -worth and takes 10 for 0; base-3 digits are 0, 1, 2.
TERNGRAD_SIMD Floats worth_table(Tiled<Packing::two_bit>, float worth) {
  return multiply(all_floats(worth), four_floats(0, 1, 0, -1));
}
TERNGRAD_SIMD Floats worth_table(Tiled<Packing::base3>, float worth) {
  return multiply(all_floats(worth), four_floats(0, 1, -1, 0));
}

// The lowest of the two bits of a lane at which look_up finds a row's code.
template <class Form>
constexpr int bit_of(int row) {
  return Form::packing == Packing::base3 && row >= 2 ? 2 * row + 4 : 2 * row;
}

// The codes of 2 * kLanes columns.
TERNGRAD_SIMD void load_codes(Tiled<Packing::two_bit>, const uint8_t* bytes, Ints* codes) {
  codes[0] = load_bytes_wide(bytes);
  codes[1] = load_bytes_wide(bytes + kLanes);
}

// In 16-bit lanes. 7282 / 2^16 is so little above 1/9 that the quotients of all bytes are right. Digits are looked up
// in pairs, 0 to 8; the last is floor(b / 81), and the 3 of bytes above 242 is worth what the 0 that it stands for is.
// Products are upper halves of shifted factors: for lower halves compilers take shifts and adds, more than one
// multiply.
TERNGRAD_SIMD void load_codes(Tiled<Packing::base3> form, const uint8_t* from, Ints* codes) {
  const Bytes pair_codes = sixteen_bytes(0, 1, 2, 4, 5, 6, 8, 9, 10, 0, 0, 0, 0, 0, 0, 0);
  const Shorts bytes = load_bytes16(from);
  const Shorts ninths = high_products16(bytes, all_lanes16(7282));
  const Shorts last_code = shift_left16<bit_of<decltype(form)>(4)>(high_products16(ninths, all_lanes16(7282)));
  // b mod 9 in the lower byte, floor(b / 9) mod 9 in the upper: b + (256 - 9) floor(b / 9) - 256 * 9 floor(b / 81).
  const Shorts two_ninths = high_products16(shift_left16<8>(ninths), all_lanes16((256 - 9) << 8));
  const Shorts pairs = subtract16(add16(bytes, two_ninths), high_products16(last_code, all_lanes16(9 << 12)));
  widen16(add16(look_up_bytes(pair_codes, pairs), last_code), &codes[0], &codes[1]);
}

// Calls f(row) for the rows of a tile; the compiler knows row.value.
template <int Row>
struct RowNumber {
  static constexpr int value = Row;
};
template <class Form, class F>
TERNGRAD_SIMD void for_each_row(Form, const F& f) {
  f(RowNumber<0>{});
  f(RowNumber<1>{});
  f(RowNumber<2>{});
  f(RowNumber<3>{});
  if constexpr (Form::rows == 5) f(RowNumber<4>{});
}

// From here on an output does not stay in the last-level cache anyway: writing around it saves reading it first.
constexpr int64_t kStreamBytes = int64_t{16} << 20;

template <class T>
TERNGRAD_SIMD bool streams(const void* out, int64_t elements) {
  const bool is_float = sizeof(T) == sizeof(float);  // the other types have other sizes
  return is_float && elements * static_cast<int64_t>(sizeof(T)) >= kStreamBytes &&
         reinterpret_cast<uintptr_t>(out) % kStreamAlignment == 0;
}

// Calls f(index, values) for all elements of a tile, kLanes at a time. All codes are loaded first and the rows then
// taken one by one: so an output is one stream of writes, in the order of addresses.
template <class Form, class F>
TERNGRAD_SIMD void for_each_value(Form form, const uint8_t* bytes, Floats table, const F& f) {
  constexpr int64_t kVectors = kColumns / kLanes;
  Ints codes[kVectors];
  for (int64_t i = 0; i < kVectors; i += 2) load_codes(form, bytes + i * kLanes, codes + i);
  for_each_row(form, [&](auto row) {
    for (int64_t i = 0; i < kVectors; ++i) {
      f(row.value * kColumns + i * kLanes, look_up<bit_of<Form>(row.value)>(table, codes[i]));
    }
  });
}

template <class T, class Form>
TERNGRAD_SIMD void decode_tiles(Form form, const uint8_t* payload, int64_t tiles, Floats table, void* out) {
  for (int64_t tile = 0; tile < tiles; ++tile) {
    for_each_value(form, payload + tile * kColumns, table,
                   [&](int64_t index, Floats values) { store_floats<T>(out, tile * Form::tile + index, values); });
  }
}

// The same for float32, past the caches.
template <class Form>
TERNGRAD_SIMD void stream_tiles(Form form, const uint8_t* payload, int64_t tiles, Floats table, void* out) {
  for (int64_t tile = 0; tile < tiles; ++tile) {
    float* to = static_cast<float*>(out) + tile * Form::tile;
    for_each_value(form, payload + tile * kColumns, table,
                   [&](int64_t index, Floats values) { stream_floats(to + index, values); });
  }
  stores_end();
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

template <class T, class Form>
TERNGRAD_SIMD void decode_as(Form form, const uint8_t* payload, int64_t n, float worth, void* out) {
  const Floats table = worth_table(form, worth);
  const int64_t tiles = n / Form::tile;
  const int64_t whole = tiles * Form::tile;
  if (streams<T>(out, whole)) {
    stream_tiles(form, payload, tiles, table, out);
  } else {
    decode_tiles<T>(form, payload, tiles, table, out);
  }
  if (whole == n) return;
  int8_t trits[Form::tile];
  TERNGRAD_ISA::unpack(payload + tiles * kColumns, n - whole, Form::packing, trits);
  // A trit's two lowest bits are its two-bit code.
  decode_trits<T>(trits, n - whole, worth_table(Tiled<Packing::two_bit>{}, worth),
                  static_cast<unsigned char*>(out) + whole * static_cast<int64_t>(sizeof(T)));
}

// Adds all terms to whole tiles: to what `out` holds, or to zeros. `store` gets each sum. The sums of all rows of some
// columns stay in registers; but `out` is read in the order of addresses, and the first term added on the way.
template <class T, bool Fresh, class Form, class Store>
TERNGRAD_SIMD void add_tiles(Form form, const Terms& terms, int64_t tiles, const void* out, const Store& store) {
  alignas(64) float sums_of_tile[Form::tile];
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t start = tile * Form::tile;
    const auto add_first = [&](const auto& to) {
      for_each_value(form, terms.payloads[0] + tile * kColumns, worth_table(form, terms.worth[0]),
                     [&](int64_t index, Floats values) {
                       to(index, add(Fresh ? all_floats(0.0f) : load_floats<T>(out, start + index), values));
                     });
    };
    if (terms.count == 1) {
      add_first([&](int64_t index, Floats sum) { store(start + index, sum); });
      continue;
    }
    if (!Fresh) add_first([&](int64_t index, Floats sum) { store_floats<float>(sums_of_tile, index, sum); });
    for (int64_t column = 0; column < kColumns; column += 2 * kLanes) {
      Floats sums[2 * Form::rows];
#pragma GCC unroll 10
      for (int64_t i = 0; i < 2 * Form::rows; ++i) {
        const int64_t index = i / 2 * kColumns + column + i % 2 * kLanes;
        sums[i] = Fresh ? all_floats(0.0f) : load_floats<float>(sums_of_tile, index);
      }
      for (int64_t term = Fresh ? 0 : 1; term < terms.count; ++term) {
        const Floats table = worth_table(form, terms.worth[term]);
        Ints codes[2];
        load_codes(form, terms.payloads[term] + tile * kColumns + column, codes);
        for_each_row(form, [&](auto row) {
          Floats* of_row = sums + 2 * row.value;
          of_row[0] = add(of_row[0], look_up<bit_of<Form>(row.value)>(table, codes[0]));
          of_row[1] = add(of_row[1], look_up<bit_of<Form>(row.value)>(table, codes[1]));
        });
      }
#pragma GCC unroll 10
      for (int64_t i = 0; i < 2 * Form::rows; ++i) {
        store(start + i / 2 * kColumns + column + i % 2 * kLanes, sums[i]);
      }
    }
  }
}

template <class T, class Form>
TERNGRAD_SIMD void add_whole_tiles(Form form, const Terms& terms, int64_t tiles, bool fresh, void* out) {
  const auto store = [&](int64_t index, Floats sum) { store_floats<T>(out, index, sum); };
  const auto stream = [&](int64_t index, Floats sum) { stream_floats(static_cast<float*>(out) + index, sum); };
  if (!fresh) {  // what is added to has been read, so it is in the caches
    add_tiles<T, false>(form, terms, tiles, out, store);
  } else if (streams<T>(out, tiles * Form::tile)) {
    add_tiles<T, true>(form, terms, tiles, out, stream);
    stores_end();
  } else {
    add_tiles<T, true>(form, terms, tiles, out, store);
  }
}

// Adds all terms to the elements [from, n), which are not whole tiles of trits: a unit's sums in float32, term after
// term.
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
  with_dtype(dtype, [&](auto stored) {
    using T = typename decltype(stored)::type;
    if (packing == Packing::float32) return decode_carried<T>(payload, n, worth, out);
    if (is_counts(packing)) return decode_counts<T>(payload, packing, n, worth, out);
    with_ternary(packing, [&](auto form) { decode_as<T>(form, payload, n, worth, out); });
  });
}

void decode_sum(const Terms& terms, Packing packing, int64_t n, bool fresh, DType dtype, void* out) {
  with_dtype(dtype, [&](auto stored) {
    using T = typename decltype(stored)::type;
    if (!is_ternary(packing)) return add_units<T>(terms, packing, 0, n, fresh, out);
    with_ternary(packing, [&](auto form) {
      const int64_t tiles = n / decltype(form)::tile;
      add_whole_tiles<T>(form, terms, tiles, fresh, out);
      add_units<T>(terms, packing, tiles * decltype(form)::tile, n, fresh, out);
    });
  });
}

}  // namespace TERNGRAD_ISA
}  // namespace terngrad
