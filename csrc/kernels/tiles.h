// Rows of trits and counts to packed tiles and back: loops over bytes, row by row, that compilers turn into vector
// code.
#pragma once

#include "dispatch_types.h"
#include "kernels.h"

namespace terngrad {

TERNGRAD_CONTRACT int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Packs the signs of n trits, or n counts modulo 2^bits; n at most a tile.
template <class Form>
TERNGRAD_CONTRACT void pack_tile(const int8_t* values, int64_t n, uint8_t* bytes) {
  const int64_t columns = payload_bytes(Form::packing, n);
  memset(bytes, 0, static_cast<size_t>(columns));
#pragma GCC unroll 5
  for (int64_t row = 0; row < Form::rows; ++row) {
    const int64_t used = smaller(columns, n - row * columns);
    for (int64_t column = 0; column < used; ++column) {
      const int8_t value = values[row * columns + column];
      const uint32_t code = code_of(Form::packing, is_ternary(Form::packing) ? sign_of(value) : value, row);
      bytes[column] = static_cast<uint8_t>(bytes[column] + code);
    }
  }
}

template <class Form>
TERNGRAD_CONTRACT void unpack_tile(const uint8_t* bytes, int64_t n, int8_t* values) {
  const int64_t columns = payload_bytes(Form::packing, n);
#pragma GCC unroll 5
  for (int64_t row = 0; row < Form::rows; ++row) {
    const int64_t used = smaller(columns, n - row * columns);
    for (int64_t column = 0; column < used; ++column) {
      values[row * columns + column] = value_in(Form::packing, bytes[column], row);
    }
  }
}

template <class Form>
TERNGRAD_CONTRACT void pack_tiles(const int8_t* values, int64_t n, uint8_t* payload) {
  for (int64_t start = 0; start < n; start += Form::tile) {
    pack_tile<Form>(values + start, smaller(Form::tile, n - start), payload + start / Form::rows);
  }
}

template <class Form>
TERNGRAD_CONTRACT void unpack_tiles(const uint8_t* payload, int64_t n, int8_t* values) {
  for (int64_t start = 0; start < n; start += Form::tile) {
    unpack_tile<Form>(payload + start / Form::rows, smaller(Form::tile, n - start), values + start);
  }
}

// The trits or counts of a payload as floats, n at most a unit. `unpack` is the instruction set's.
TERNGRAD_CONTRACT void to_floats(const uint8_t* payload, Packing packing, int64_t n, UnpackKernel* unpack,
                                 float* values) {
  if (packing == Packing::counts16) {
    for (int64_t i = 0; i < n; ++i) values[i] = static_cast<float>(load<int16_t>(payload, i));
    return;
  }
  int8_t bytes[kUnit];
  unpack(payload, n, packing, bytes);
  for (int64_t i = 0; i < n; ++i) values[i] = static_cast<float>(bytes[i]);
}

// Adds those of `count` elements of addend i, from `start` on, to `sums`, modulo 2^16, which only a payload that is not
// canonical can pass; at most a unit.
TERNGRAD_CONTRACT void add_to_sums(const Addends& addends, int64_t i, int64_t start, int64_t count,
                                   UnpackKernel* unpack, int16_t* sums) {
  const Packing packing = addends.packings[i];
  const uint8_t* payload = addends.payloads[i] + payload_bytes(packing, start);
  if (packing == Packing::counts16) {
    for (int64_t k = 0; k < count; ++k) sums[k] = static_cast<int16_t>(sums[k] + load<int16_t>(payload, k));
    return;
  }
  int8_t bytes[kUnit];
  unpack(payload, count, packing, bytes);
  for (int64_t k = 0; k < count; ++k) sums[k] = static_cast<int16_t>(sums[k] + bytes[k]);
}

// Sums as counts, modulo 2^bits; n at most a unit.
TERNGRAD_CONTRACT void pack_sums(const int16_t* sums, int64_t n, Packing packing, PackKernel* pack, uint8_t* payload) {
  if (packing == Packing::counts16) {
    memcpy(payload, sums, static_cast<size_t>(2 * n));
    return;
  }
  int8_t bytes[kUnit];
  for (int64_t i = 0; i < n; ++i) bytes[i] = static_cast<int8_t>(sums[i] & 255);
  pack(bytes, n, packing, payload);
}

// Elements [from, n) of sum_trits, unit by unit; `from` begins one. `add` adds an addend or several, from i on, as
// add_to_sums does, and returns which comes next.
template <class Add>
TERNGRAD_CONTRACT void sum_units(const Addends& addends, int64_t from, int64_t n, Packing packing, const Add& add,
                                 PackKernel* pack, uint8_t* payload) {
  int16_t sums[kUnit];
  for (int64_t start = from; start < n; start += kUnit) {
    const int64_t count = smaller(kUnit, n - start);
    memset(sums, 0, sizeof sums);
    for (int64_t i = 0; i < addends.count;) i = add(i, start, count, sums);
    pack_sums(sums, count, packing, pack, payload + payload_bytes(packing, start));
  }
}

// A float32 payload: the values themselves.
template <class T>
TERNGRAD_CONTRACT void carry(const void* x, int64_t n, uint8_t* payload) {
  for (int64_t i = 0; i < n; ++i) store<float>(payload, i, carried(load<T>(x, i)));
}

template <class T>
TERNGRAD_CONTRACT void decode_carried(const uint8_t* payload, int64_t n, float worth, void* out) {
  if (worth == 1.0f) {
    for (int64_t i = 0; i < n; ++i) store_float<T>(out, i, load<float>(payload, i));
  } else {
    for (int64_t i = 0; i < n; ++i) store_float<T>(out, i, worth * load<float>(payload, i));
  }
}

}  // namespace terngrad
