#include "dispatch_types.h"
#include "kernels.h"
#include "philox_simd.h"
#include "simd.h"
#include "tiles.h"

namespace terngrad {
namespace TERNGRAD_ISA {
namespace {

constexpr int64_t kStep = 4 * kLanes;  // columns: as many as a vector has bytes
constexpr int64_t kDrawRows = 4;       // rows that one Philox block serves
constexpr int64_t kDrawTile = kDrawRows * kColumns;
constexpr int64_t kBlocksInTile = kColumns / 4;

// x * inverse passes the bound only with a scale above the limit, which only a caller can pass. Elsewhere the bound is
// 2^31, where the conversion to integers saturates by itself.
enum class Bound { none, some };

struct Source {
  const void* x;
  PhiloxConstants philox;
  Floats inverse;
  Floats bound;
};

// The random words of kStep columns, from column `column` of a draw tile on.
struct StepWords {
  Words blocks[kRegisters];
};
static_assert(4 * kBlocks * kRegisters == kStep, "a block serves four columns");

TERNGRAD_SIMD StepWords step_words(const Source& source, uint32_t tile, int64_t column) {
  StepWords words;
  const auto block = static_cast<uint32_t>(kBlocksInTile) * tile + static_cast<uint32_t>(column / 4);
  philox(source.philox, block, words.blocks);
  return words;
}

// The trits of kStep columns of one row: `plus` or `minus` in the bytes of those that fire.
template <class T, Bound B, int Row>
TERNGRAD_SIMD Bytes step_trits(const Source& source, int64_t index, const StepWords& words, Bytes plus, Bytes minus) {
  Ints uniform[4];
  uniforms<Row>(words.blocks, uniform);
  Ints fire[4];
  Ints sign[4];
#pragma GCC unroll 4
  for (int64_t i = 0; i < 4; ++i) {
    const Floats value = load_floats<T>(source.x, index + i * kLanes);
    Floats scaled = multiply(magnitude(value), source.inverse);
    if (B == Bound::some) scaled = smaller_or_second(scaled, source.bound);
    sign[i] = bits(value);
    fire[i] = fires(uniform[i], to_threshold(scaled));
  }
  return choose(signs(fire[0], fire[1], fire[2], fire[3]), signs(sign[0], sign[1], sign[2], sign[3]), plus, minus);
}

// The four rows of a draw tile in turn; `row` gets r and a function from (plus, minus) to its bytes.
template <class T, Bound B, class F>
TERNGRAD_SIMD void for_each_row(const Source& source, int64_t index, const StepWords& words, const F& row) {
  row(0, [&](Bytes plus, Bytes minus) { return step_trits<T, B, 0>(source, index, words, plus, minus); });
  row(1, [&](Bytes plus, Bytes minus) { return step_trits<T, B, 1>(source, index + kColumns, words, plus, minus); });
  row(2,
      [&](Bytes plus, Bytes minus) { return step_trits<T, B, 2>(source, index + 2 * kColumns, words, plus, minus); });
  row(3,
      [&](Bytes plus, Bytes minus) { return step_trits<T, B, 3>(source, index + 3 * kColumns, words, plus, minus); });
}

// Rows are read side by side, but memory wants each line once and in the order of addresses. So every step of kStep
// columns of a draw tile asks for the next share of what comes a few KB later: share `index` of the source.
template <class T>
TERNGRAD_SIMD void prefetch_share(const Source& source, int64_t index, int64_t bytes_ahead) {
  constexpr auto kShare = static_cast<int64_t>(sizeof(T)) * kDrawRows * kStep;
  for (int64_t line = 0; line < kShare; line += 64) prefetch(source.x, index * kShare + bytes_ahead + line);
}

constexpr int64_t kSharesInTile = kColumns / kStep;
constexpr int64_t kAhead = 4096;

template <class T, Bound B>
void to_trits(const Source& source, uint32_t tile, int64_t tiles, int8_t* trits) {
  for (int64_t done = 0; done < tiles; ++done) {
    for (int64_t column = 0; column < kColumns; column += kStep) {
      const StepWords words = step_words(source, tile + static_cast<uint32_t>(done), column);
      prefetch_share<T>(source, done * kSharesInTile + column / kStep, kAhead);
      for_each_row<T, B>(source, done * kDrawTile + column, words, [&](int64_t row, const auto& trits_of) {
        store_bytes(trits + done * kDrawTile + row * kColumns + column,
                    in_order(trits_of(all_bytes(1), all_bytes(255))));
      });
    }
  }
}

template <class T, Bound B>
void to_tiles(Tiled<Packing::two_bit>, const Source& source, uint32_t tile, int64_t tiles, uint8_t* payload) {
  for (int64_t done = 0; done < tiles; ++done) {
    for (int64_t column = 0; column < kColumns; column += kStep) {
      const StepWords words = step_words(source, tile + static_cast<uint32_t>(done), column);
      prefetch_share<T>(source, done * kSharesInTile + column / kStep, kAhead);
      Bytes codes = all_bytes(0);
      for_each_row<T, B>(source, done * kDrawTile + column, words, [&](int row, const auto& trits_of) {
        codes = merge(codes, trits_of(all_bytes(1u << (2 * row)), all_bytes(3u << (2 * row))));
      });
      store_bytes(payload + done * kColumns + column, in_order(codes));
    }
  }
}

// Five draw tiles are 20 rows, which are four base-3 tiles. Unrolled, for then the powers of three are constants.
template <class T, Bound B>
void to_tiles(Tiled<Packing::base3>, const Source& source, uint32_t tile, int64_t tiles, uint8_t* payload) {
  constexpr int64_t kDraws = kUnit / kDrawTile;
  for (int64_t unit = 0; unit < tiles / 4; ++unit) {
    for (int64_t column = 0; column < kColumns; column += kStep) {
      Bytes digits = all_bytes(0);
      int64_t digit_row = 0;
      uint8_t* to = payload + unit * (kUnit / 5) + column;
#pragma GCC unroll 5
      for (int64_t draw = 0; draw < kDraws; ++draw) {
        const int64_t done = unit * kDraws + draw;
        const StepWords words = step_words(source, tile + static_cast<uint32_t>(done), column);
        const int64_t share = unit * kDraws * kSharesInTile + column / kStep * kDraws + draw;
        prefetch_share<T>(source, share,
                          kUnit * static_cast<int64_t>(sizeof(T)));  // the next unit: this one is read across
        for_each_row<T, B>(source, done * kDrawTile + column, words, [&](int64_t, const auto& trits_of) {
          const uint32_t power = power_of_three(digit_row);
          digits = add_bytes(digits, trits_of(all_bytes(power), all_bytes(2 * power)));
          if (++digit_row == 5) {
            store_bytes(to, in_order(digits));
            to += kColumns;
            digits = all_bytes(0);
            digit_row = 0;
          }
        });
      }
    }
  }
}

// The trits of the last `count` elements, fewer than a unit.
template <class T, Bound B>
void rest_to_trits(Source source, int64_t index, int64_t count, uint32_t tile, int8_t* trits) {
  T padded[kUnit];
  const int64_t tiles = (count + kDrawTile - 1) / kDrawTile;
  const size_t bytes = static_cast<size_t>(count) * sizeof(T);
  memcpy(padded, at(source.x, index * static_cast<int64_t>(sizeof(T))), bytes);
  memset(static_cast<void*>(reinterpret_cast<unsigned char*>(padded) + bytes), 0,
         static_cast<size_t>(tiles * kDrawTile) * sizeof(T) - bytes);
  source.x = padded;
  to_trits<T, B>(source, tile, tiles, trits);
}

template <class T, Bound B>
TERNGRAD_SIMD void ternarize_as(const Source& source, int64_t n, uint32_t tile, int8_t* trits) {
  const int64_t tiles = n / kDrawTile;
  const int64_t whole = tiles * kDrawTile;
  to_trits<T, B>(source, tile, tiles, trits);
  if (whole == n) return;
  int8_t rest[kUnit];
  rest_to_trits<T, B>(source, whole, n - whole, tile + static_cast<uint32_t>(tiles), rest);
  memcpy(trits + whole, rest, static_cast<size_t>(n - whole));
}

template <class T, Bound B, class Form>
TERNGRAD_SIMD void encode_as(Form form, const Source& source, int64_t n, uint32_t tile, uint8_t* payload) {
  constexpr int64_t kGroup = Form::packing == Packing::base3 ? kUnit : kDrawTile;  // whole tiles of draw and packing
  const int64_t whole = n / kGroup * kGroup;
  to_tiles<T, B>(form, source, tile, whole / Form::tile, payload);
  if (whole == n) return;
  int8_t rest[kUnit];
  rest_to_trits<T, B>(source, whole, n - whole, tile + static_cast<uint32_t>(whole / kDrawTile), rest);
  TERNGRAD_ISA::pack(rest, n - whole, Form::packing, payload + whole / Form::rows);
}

Source source_of(const void* x, const Draw& draw, const Quantiser& quantiser) {
  return Source{x, philox_constants(draw), all_floats(quantiser.inverse), all_floats(quantiser.bound)};
}

}  // namespace

void ternarize(const void* x, DType dtype, int64_t n, int64_t first, const Draw& draw, const Quantiser& quantiser,
               int8_t* trits) {
  if (!quantiser.live) {
    memset(trits, 0, static_cast<size_t>(n));
    return;
  }
  const Source source = source_of(x, draw, quantiser);
  const auto tile = static_cast<uint32_t>(first / kDrawTile);
  with_dtype(dtype, [&](auto stored) {
    using T = typename decltype(stored)::type;
    if (quantiser.bound < kTwo31) {
      ternarize_as<T, Bound::some>(source, n, tile, trits);
    } else {
      ternarize_as<T, Bound::none>(source, n, tile, trits);
    }
  });
}

void encode(const void* x, DType dtype, int64_t n, int64_t first, const Draw& draw, const Quantiser& quantiser,
            Packing packing, uint8_t* payload) {
  if (packing == Packing::float32) {
    with_dtype(dtype, [&](auto stored) { carry<typename decltype(stored)::type>(x, n, payload); });
    return;
  }
  if (!quantiser.live) {
    memset(payload, 0, static_cast<size_t>(payload_bytes(packing, n)));
    return;
  }
  const Source source = source_of(x, draw, quantiser);
  const auto tile = static_cast<uint32_t>(first / kDrawTile);
  with_dtype(dtype, [&](auto stored) {
    using T = typename decltype(stored)::type;
    with_ternary(packing, [&](auto form) {
      if (quantiser.bound < kTwo31) {
        encode_as<T, Bound::some>(form, source, n, tile, payload);
      } else {
        encode_as<T, Bound::none>(form, source, n, tile, payload);
      }
    });
  });
}

}  // namespace TERNGRAD_ISA
}  // namespace terngrad
