// The loops of tiles.h, which the compiler vectorises for this instruction set.
#include "kernels.h"
#include "simd.h"
#include "tiles.h"

namespace terngrad {
namespace TERNGRAD_ISA {

void pack(const int8_t* trits, int64_t n, Packing packing, uint8_t* payload) {
  with_tiled(packing, [&](auto form) { pack_tiles<decltype(form)>(trits, n, payload); });
}

void unpack(const uint8_t* payload, int64_t n, Packing packing, int8_t* trits) {
  with_tiled(packing, [&](auto form) { unpack_tiles<decltype(form)>(payload, n, trits); });
}

}  // namespace TERNGRAD_ISA
}  // namespace terngrad
