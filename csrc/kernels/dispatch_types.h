// From run-time dtype and packing to compile-time types. Private to each translation unit (see contract/platform.h).
#pragma once

#include "../contract/message.h"

namespace terngrad {

template <class T>
struct Stored {
  using type = T;
};

// Calls f(Stored<T>{}), T the storage type of `dtype`.
template <class F>
TERNGRAD_CONTRACT void with_dtype(DType dtype, const F& f) {
  switch (dtype) {
    case DType::float32: return f(Stored<float>{});
    case DType::float16: return f(Stored<Half>{});
    case DType::bfloat16: return f(Stored<BFloat16>{});
    case DType::float64: return f(Stored<double>{});
  }
}

template <Packing P>
struct Ternary {
  static constexpr Packing packing = P;
  static constexpr int64_t rows = P == Packing::base3 ? 5 : 4;
  static constexpr int64_t tile = rows * kColumns;
};

// Calls f(Ternary<P>{}), P two_bit or base3.
template <class F>
TERNGRAD_CONTRACT void with_ternary(Packing packing, const F& f) {
  if (packing == Packing::base3) return f(Ternary<Packing::base3>{});
  return f(Ternary<Packing::two_bit>{});
}

}  // namespace terngrad
