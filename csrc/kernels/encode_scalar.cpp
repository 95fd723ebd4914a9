#include "dispatch_types.h"
#include "kernels.h"
#include "tiles.h"

namespace terngrad {
namespace scalar {

void ternarize(const void* x, DType dtype, int64_t n, int64_t first, const Draw& draw, const Quantiser& quantiser,
               int8_t* trits) {
  if (!quantiser.live) {
    memset(trits, 0, static_cast<size_t>(n));
    return;
  }
  with_dtype(dtype, [&](auto stored) {
    using T = typename decltype(stored)::type;
    // One Philox block serves 4 columns of 4 rows.
    for (int64_t rows = 0; rows < n; rows += 4 * kColumns) {
      for (int64_t column = 0; column < kColumns && rows + column < n; column += 4) {
        const PhiloxWords words = philox_block(draw, block_of(first + rows + column));
        for (int i = 0; i < 4; ++i) {
          for (int j = 0; j < 4; ++j) {
            const int64_t element = rows + i * kColumns + column + j;
            if (element >= n) break;
            const float value = load_float<T>(x, element);
            trits[element] = trit_in(pattern_of(value, threshold_of(value, quantiser), uniform_of(words, i, j)));
          }
        }
      }
    }
  });
}

void encode(const void* x, DType dtype, int64_t n, int64_t first, const Draw& draw, const Quantiser& quantiser,
            Packing packing, uint8_t* payload) {
  if (packing == Packing::float32) {
    with_dtype(dtype, [&](auto stored) { carry<typename decltype(stored)::type>(x, n, payload); });
    return;
  }
  int8_t trits[kUnit];
  for (int64_t start = 0; start < n; start += kUnit) {
    const int64_t count = smaller(kUnit, n - start);
    const auto* from = static_cast<const unsigned char*>(x) + start * size_of(dtype);
    scalar::ternarize(from, dtype, count, first + start, draw, quantiser, trits);
    scalar::pack(trits, count, packing, payload + payload_bytes(packing, start));
  }
}

}  // namespace scalar
}  // namespace terngrad
