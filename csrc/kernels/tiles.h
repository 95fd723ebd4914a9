// Rows of trits to packed tiles and back: loops over bytes, row by row, that compilers turn into vector code.
#pragma once

#include "dispatch_types.h"

namespace terngrad {

TERNGRAD_CONTRACT int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Packs the signs of n trits, n at most a tile.
template <class Form>
TERNGRAD_CONTRACT void pack_tile(const int8_t* trits, int64_t n, uint8_t* bytes) {
  const int64_t columns = payload_bytes(Form::packing, n);
  memset(bytes, 0, static_cast<size_t>(columns));
#pragma GCC unroll 5
  for (int64_t row = 0; row < Form::rows; ++row) {
    const int64_t used = smaller(columns, n - row * columns);
    for (int64_t column = 0; column < used; ++column) {
      const uint32_t code = code_of(Form::packing, sign_of(trits[row * columns + column]), row);
      bytes[column] = static_cast<uint8_t>(bytes[column] + code);
    }
  }
}

template <class Form>
TERNGRAD_CONTRACT void unpack_tile(const uint8_t* bytes, int64_t n, int8_t* trits) {
  const int64_t columns = payload_bytes(Form::packing, n);
#pragma GCC unroll 5
  for (int64_t row = 0; row < Form::rows; ++row) {
    const int64_t used = smaller(columns, n - row * columns);
    for (int64_t column = 0; column < used; ++column) {
      trits[row * columns + column] = trit_in(Form::packing, bytes[column], row);
    }
  }
}

template <class Form>
TERNGRAD_CONTRACT void pack_tiles(const int8_t* trits, int64_t n, uint8_t* payload) {
  for (int64_t start = 0; start < n; start += Form::tile) {
    pack_tile<Form>(trits + start, smaller(Form::tile, n - start), payload + start / Form::rows);
  }
}

template <class Form>
TERNGRAD_CONTRACT void unpack_tiles(const uint8_t* payload, int64_t n, int8_t* trits) {
  for (int64_t start = 0; start < n; start += Form::tile) {
    unpack_tile<Form>(payload + start / Form::rows, smaller(Form::tile, n - start), trits + start);
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
