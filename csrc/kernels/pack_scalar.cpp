#include "kernels.h"
#include "tiles.h"

namespace terngrad {
namespace scalar {

void pack(const int8_t* trits, int64_t n, Packing packing, uint8_t* payload) {
  with_tiled(packing, [&](auto form) { pack_tiles<decltype(form)>(trits, n, payload); });
}

void unpack(const uint8_t* payload, int64_t n, Packing packing, int8_t* trits) {
  with_tiled(packing, [&](auto form) { unpack_tiles<decltype(form)>(payload, n, trits); });
}

}  // namespace scalar
}  // namespace terngrad
