#include "kernels.h"
#include "tiles.h"

namespace terngrad {
namespace scalar {

void sum_trits(const Addends& addends, int64_t n, Packing packing, uint8_t* payload) {
  sum_units(addends, 0, n, packing, scalar::pack, scalar::unpack, payload);
}

}  // namespace scalar
}  // namespace terngrad
