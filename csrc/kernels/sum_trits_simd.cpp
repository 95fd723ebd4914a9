#include "dispatch_types.h"
#include "kernels.h"
#include "simd.h"
#include "tiles.h"

namespace terngrad {
namespace TERNGRAD_ISA {
namespace {

constexpr int64_t kStep = 4 * kLanes;  // columns: as many as a vector has bytes

// Trits are added two rows to a byte, as a + 16 b. Up to seven messages: their sums lie in -7..7, and 0x88 more makes
// the halves of the byte sum of a + 8 and sum of b + 8.
constexpr int64_t kTogether = 7;

// Bytes that the rows of a tile take: the fifth row of base-3 has one to itself.
template <class Form>
constexpr int64_t kPairs = (Form::rows + 1) / 2;

// Adds the trits of a step of columns of a tile.
TERNGRAD_SIMD void add_pairs(Tiled<Packing::two_bit>, const uint8_t* from, Bytes* pairs) {
  const Bytes trits = sixteen_bytes(0, 1, 0, -1, 16, 17, 16, 15, 0, 1, 0, -1, -16, -15, -16, -17);
  const Bytes codes = load_bytes(from);
  pairs[0] = add_bytes(pairs[0], look_up_bytes(trits, low_nibble(codes)));
  pairs[1] = add_bytes(pairs[1], look_up_bytes(trits, high_nibble(codes)));
}

// All in bytes, by tables of the byte's halves: b = 16 h + l, and the two lowest digits are b mod 9.
//   sum = (16 h) mod 9 + l mod 9, from 0 to 16: one value more than a table has. Looked up is sum - 1, and for -1 comes
//   0, what two digits of 0 are worth.
//   floor(b / 9) = floor(16 h / 9) + [l >= 9] + [sum >= 9]. Of the first, q, a table has 16 floor(q / 9) + q mod 9 + 7.
//   With both carries that is 16 d + 7 + r where r is at most 10; from r = 9 on the 7 makes it 16 (d + 1) + r - 9. So
//   the upper half is the last digit (3 for bytes above 242, which stands for 0), and the lower one tells r mod 9, the
//   two digits before it.
TERNGRAD_SIMD void add_pairs(Tiled<Packing::base3>, const uint8_t* from, Bytes* pairs) {
  const Bytes high_mod9 = sixteen_bytes(-1, 6, 4, 2, 0, 7, 5, 3, 1, -1, 6, 4, 2, 0, 7, 5);  // less 1
  const Bytes low_mod9 = sixteen_bytes(0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 1, 2, 3, 4, 5, 6);
  const Bytes first_trits = sixteen_bytes(1, -1, 16, 17, 15, -16, -15, -17, 0, 1, -1, 16, 17, 15, -16, -15);
  const Bytes high_ninths = sixteen_bytes(7, 8, 10, 12, 14, 15, 24, 26, 28, 30, 31, 40, 42, 44, 45, 47);
  const Bytes low_carry = sixteen_bytes(0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1);
  const Bytes sum_carry = sixteen_bytes(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
  const Bytes next_trits = sixteen_bytes(0, 1, 0, 0, 0, 0, 0, 0, 1, -1, 16, 17, 15, -16, -15, -17);
  const Bytes last_trits = sixteen_bytes(0, 1, -1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
  const Bytes bytes = load_bytes(from);
  const Bytes high = high_nibble(bytes);
  const Bytes low = low_nibble(bytes);
  const Bytes sum = add_bytes(look_up_bytes(high_mod9, high), look_up_bytes(low_mod9, low));
  const Bytes carries = add_bytes(look_up_bytes(low_carry, low), look_up_bytes(sum_carry, sum));
  const Bytes ninths = add_bytes(look_up_bytes(high_ninths, high), carries);
  pairs[0] = add_bytes(pairs[0], look_up_bytes(first_trits, sum));
  pairs[1] = add_bytes(pairs[1], look_up_bytes(next_trits, low_nibble(ninths)));
  pairs[2] = add_bytes(pairs[2], look_up_bytes(last_trits, high_nibble(ninths)));
}

// Whole tiles of trits in one packing to counts of at most 8 bits, from tile `first` on: the sums of a step of columns
// stay in registers. Tiles are taken as many together as have an even number of rows, which counts4 pairs.
template <class Form>
void sum_tiles(Form form, const Addends& addends, int64_t first, int64_t tiles, Packing packing, uint8_t* payload) {
  constexpr int64_t kTiles = Form::rows % 2 ? 2 : 1;
  constexpr int64_t kRows = kTiles * Form::rows;
  for (int64_t tile = 0; tile < tiles; tile += kTiles) {
    for (int64_t column = 0; column < kColumns; column += kStep) {
      Bytes pairs[kTiles * kPairs<Form>];
      const auto add_some = [&](int64_t from, int64_t to) {
#pragma GCC unroll 2
        for (int64_t t = 0; t < kTiles; ++t) {
          Bytes* of_tile = pairs + t * kPairs<Form>;
          for (int64_t k = 0; k < kPairs<Form>; ++k) of_tile[k] = all_bytes(0x88);
          const int64_t at = (first + tile + t) * kColumns + column;
          for (int64_t i = from; i < to; ++i) add_pairs(form, addends.payloads[i] + at, of_tile);
        }
      };
      // The sum of a row + 8 in the lower half of each byte; anything above.
      const auto pair_of = [&](int64_t row) { return pairs[row / Form::rows * kPairs<Form> + row % Form::rows / 2]; };
      const auto half_of = [&](int64_t row) { return row % Form::rows % 2 ? high_nibble(pair_of(row)) : pair_of(row); };
      uint8_t* to = payload + tile * Form::rows / (packing == Packing::counts4 ? 2 : 1) * kColumns + column;
      if (packing == Packing::counts4 && addends.count <= kTogether) {
        add_some(0, addends.count);
#pragma GCC unroll 5
        for (int64_t row = 0; row < kRows; row += 2) {
          const bool paired = row % Form::rows % 2 == 0 && row % Form::rows + 1 < Form::rows;
          const Bytes both = paired ? pair_of(row) : nibbles(half_of(row), half_of(row + 1));
          store_bytes(to + row / 2 * kColumns, exclusive_or(both, all_bytes(0x88)));  // 8 less, modulo 16
        }
        continue;
      }
      Bytes sums[kRows];
      const int64_t rounds = (addends.count + kTogether - 1) / kTogether;
      for (int64_t row = 0; row < kRows; ++row) sums[row] = all_bytes(static_cast<uint32_t>(-8 * rounds));
      for (int64_t from = 0; from < addends.count; from += kTogether) {
        add_some(from, smaller(from + kTogether, addends.count));
#pragma GCC unroll 10
        for (int64_t row = 0; row < kRows; ++row) {
          sums[row] = add_bytes(sums[row], low_nibble(half_of(row)));
        }
      }
#pragma GCC unroll 10
      for (int64_t row = 0; row < kRows; ++row) {
        if (packing == Packing::counts8) {
          store_bytes(to + row * kColumns, sums[row]);
        } else if (row % 2 == 0) {
          store_bytes(to + row / 2 * kColumns, nibbles(sums[row], sums[row + 1]));
        }
      }
    }
  }
}

// The first addend from i on that is packed otherwise than i, or their end.
int64_t end_of_run(const Addends& addends, int64_t i) {
  const Packing packing = addends.packings[i];
  while (i < addends.count && addends.packings[i] == packing) ++i;
  return i;
}

// The addends [from, to), all of trits in one packing, in whole units: elements [start, start + n).
void sum_run(const Addends& addends, int64_t from, int64_t to, int64_t start, int64_t n, Packing packing,
             uint8_t* payload) {
  const Addends run{addends.payloads + from, addends.packings + from, to - from};
  with_ternary(run.packings[0], [&](auto form) {
    constexpr int64_t tile = decltype(form)::tile;
    sum_tiles(form, run, start / tile, n / tile, packing, payload);
  });
}

}  // namespace

void sum_trits(const Addends& addends, int64_t n, Packing packing, uint8_t* payload) {
  int64_t whole = 0;
  if (packing != Packing::counts16 && is_ternary(addends.packings[0]) && end_of_run(addends, 0) == addends.count) {
    whole = n / kUnit * kUnit;
    sum_run(addends, 0, addends.count, 0, whole, packing, payload);
  }
  // Else the trits of a run are added in bytes first: up to 127 messages, which a byte holds.
  const auto add = [&](int64_t i, int64_t start, int64_t count, int16_t* sums) {
    if (count < kUnit || !is_ternary(addends.packings[i])) {
      add_to_sums(addends, i, start, count, TERNGRAD_ISA::unpack, sums);
      return i + 1;
    }
    const int64_t end = smaller(end_of_run(addends, i), i + most_workers(Packing::counts8));
    uint8_t bytes[kUnit];
    sum_run(addends, i, end, start, kUnit, Packing::counts8, bytes);
    for (int64_t k = 0; k < kUnit; ++k) {
      sums[k] = static_cast<int16_t>(sums[k] + value_in(Packing::counts8, bytes[k], 0));
    }
    return end;
  };
  sum_units(addends, whole, n, packing, add, TERNGRAD_ISA::pack, payload);
}

}  // namespace TERNGRAD_ISA
}  // namespace terngrad
