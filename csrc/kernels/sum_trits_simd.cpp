#include "dispatch_types.h"
#include "kernels.h"
#include "simd.h"
#include "tiles.h"

namespace terngrad {
namespace TERNGRAD_ISA {
namespace {

constexpr int64_t kStep = 4 * kLanes;  // columns: as many as a vector has bytes

// Whole two-bit tiles to counts of at most 8 bits: the sums of a step of columns stay in registers, a byte each.
void sum_two_bit_tiles(const Addends& addends, int64_t tiles, Packing packing, uint8_t* payload) {
  for (int64_t from = 0; from < tiles * kColumns; from += kStep) {
    Bytes sums[4] = {all_bytes(0), all_bytes(0), all_bytes(0), all_bytes(0)};
    for (int64_t i = 0; i < addends.count; ++i) {
      const Bytes codes = load_bytes(addends.payloads[i] + from);
      sums[0] = add_bytes(sums[0], trits_in<0>(codes));
      sums[1] = add_bytes(sums[1], trits_in<1>(codes));
      sums[2] = add_bytes(sums[2], trits_in<2>(codes));
      sums[3] = add_bytes(sums[3], trits_in<3>(codes));
    }
    const int64_t tile = from / kColumns;
    const int64_t column = from % kColumns;
    if (packing == Packing::counts4) {
      uint8_t* to = payload + tile * 2 * kColumns + column;
      store_bytes(to, nibbles(sums[0], sums[1]));
      store_bytes(to + kColumns, nibbles(sums[2], sums[3]));
    } else {
      uint8_t* to = payload + tile * 4 * kColumns + column;
#pragma GCC unroll 4
      for (int64_t row = 0; row < 4; ++row) store_bytes(to + row * kColumns, sums[row]);
    }
  }
}

bool all_two_bit(const Addends& addends) {
  for (int64_t i = 0; i < addends.count; ++i) {
    if (addends.packings[i] != Packing::two_bit) return false;
  }
  return true;
}

}  // namespace

void sum_trits(const Addends& addends, int64_t n, Packing packing, uint8_t* payload) {
  int64_t whole = 0;
  if (packing != Packing::counts16 && all_two_bit(addends)) {
    whole = n / kUnit * kUnit;
    sum_two_bit_tiles(addends, whole / Tiled<Packing::two_bit>::tile, packing, payload);
  }
  sum_units(addends, whole, n, packing, TERNGRAD_ISA::pack, TERNGRAD_ISA::unpack, payload);
}

}  // namespace TERNGRAD_ISA
}  // namespace terngrad
