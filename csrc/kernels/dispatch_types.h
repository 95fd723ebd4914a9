// From run-time dtype and packing to compile-time types. Private to each translation unit (see contract/platform.h).
#pragma once

#include "../contract/message.h"

// Host alone, for what they call may be; else as TERNGRAD_CONTRACT.
#define TERNGRAD_DISPATCH static inline __attribute__((always_inline))

namespace terngrad {

template <class T>
struct Stored {
  using type = T;
};

// Calls f(Stored<T>{}), T the storage type of `dtype`.
template <class F>
TERNGRAD_DISPATCH void with_dtype(DType dtype, const F& f) {
  switch (dtype) {
    case DType::float32: return f(Stored<float>{});
    case DType::float16: return f(Stored<Half>{});
    case DType::bfloat16: return f(Stored<BFloat16>{});
    case DType::float64: return f(Stored<double>{});
  }
}

// A packing whose values share bytes in tiles.
template <Packing P>
struct Tiled {
  static constexpr Packing packing = P;
  static constexpr int64_t rows = P == Packing::base3 ? 5 : P == Packing::counts4 ? 2 : P == Packing::counts8 ? 1 : 4;
  static constexpr int64_t tile = rows * kColumns;
};

// Calls f(Tiled<P>{}), P two_bit or base3.
template <class F>
TERNGRAD_DISPATCH void with_ternary(Packing packing, const F& f) {
  if (packing == Packing::base3) return f(Tiled<Packing::base3>{});
  return f(Tiled<Packing::two_bit>{});
}

// The same, P counts4 and counts8 too.
template <class F>
TERNGRAD_DISPATCH void with_tiled(Packing packing, const F& f) {
  if (packing == Packing::counts4) return f(Tiled<Packing::counts4>{});
  if (packing == Packing::counts8) return f(Tiled<Packing::counts8>{});
  return with_ternary(packing, f);
}

}  // namespace terngrad
