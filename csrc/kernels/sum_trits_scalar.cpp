#include "kernels.h"
#include "tiles.h"

namespace terngrad {
namespace scalar {

void sum_trits(const Addends& addends, int64_t n, Packing packing, uint8_t* payload) {
  const auto add = [&](int64_t i, int64_t start, int64_t count, int16_t* sums) {
    add_to_sums(addends, i, start, count, scalar::unpack, sums);
    return i + 1;
  };
  sum_units(addends, 0, n, packing, add, scalar::pack, payload);
}

}  // namespace scalar
}  // namespace terngrad
