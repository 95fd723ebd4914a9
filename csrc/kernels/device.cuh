// What the kernels on CUDA devices share: how blocks find their tile, and how a warp reads, writes and packs a unit.
//
// A warp has a unit of 20 rows x 128 columns; its lane l has columns 4 l to 4 l + 3, which in each group of four rows
// are one Philox block, and in each tile of a payload one 32-bit word. Functions assume all lanes of the warp.
#pragma once

#include "dispatch_types.h"
#include "kernels_cuda.h"

#define TERNGRAD_DEVICE static __device__ __forceinline__

namespace terngrad {
namespace cuda {
namespace {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kRows = static_cast<int>(kUnit / kColumns);  // of a unit
constexpr int kRowGroup = 4 * static_cast<int>(kColumns);  // elements of four rows
static_assert(kUnit % kColumns == 0 && kUnit % kRowGroup == 0, "a unit is whole groups of rows");

TERNGRAD_DEVICE int lane_of() { return static_cast<int>(threadIdx.x % unsigned{kWarp}); }
// The same in all lanes, by which the compiler sees that what follows from it is, and takes far fewer registers.
TERNGRAD_DEVICE int warp_of() { return __shfl_sync(kAllLanes, static_cast<int>(threadIdx.x / unsigned{kWarp}), 0); }

TERNGRAD_DEVICE int64_t smaller_of(int64_t a, int64_t b) { return a < b ? a : b; }

// The last i < count whose starts[i] is at most `item`; starts[0] is 0 and they ascend. 32 guesses at a time.
TERNGRAD_DEVICE int find(const int64_t* starts, int count, int64_t item) {
  int first = 0;
  while (count > 1) {
    const int step = (count - 1) / kWarp + 1;
    const int guess = lane_of() * step;  // at most 31 x 2^26
    const bool before = guess < count && starts[first + guess] <= item;
    const int skipped = (__popc(__ballot_sync(kAllLanes, before)) - 1) * step;
    first += skipped;
    count = count - skipped < step ? count - skipped : step;
  }
  return first;
}

// ---- memory

TERNGRAD_DEVICE bool is_aligned(const void* address, int bytes) {
  return static_cast<unsigned>(reinterpret_cast<uintptr_t>(address)) % static_cast<unsigned>(bytes) == 0;
}

template <int Bytes>
struct Vector;
template <>
struct Vector<4> {
  using type = uint32_t;
};
template <>
struct Vector<8> {
  using type = uint2;
};
template <>
struct Vector<16> {
  using type = uint4;
};

// Four neighbouring elements of type T in registers.
template <class T>
struct Four {
  T values[4];
};

template <class T>
struct FourMemory {
  static constexpr int kBytes = 4 * static_cast<int>(sizeof(T));
  static constexpr int kVector = kBytes < 16 ? kBytes : 16;
  using type = typename Vector<kVector>::type;
};

// Whether four elements at a time may be read and written at once, if the first of them is a multiple of 4.
template <class T>
TERNGRAD_DEVICE bool takes_vectors(const void* base) {
  return is_aligned(base, FourMemory<T>::kVector);
}

// Read once and not again soon (the caches need not keep them), or else.
enum class Again { yes, no };

template <class T>
TERNGRAD_DEVICE Four<T> load_four(const unsigned char* base, int64_t element, bool vectors, Again again = Again::yes) {
  using V = typename FourMemory<T>::type;
  const unsigned char* from = base + element * static_cast<int64_t>(sizeof(T));
  Four<T> four;
  if (vectors) {
    V raw[FourMemory<T>::kBytes / FourMemory<T>::kVector];
#pragma unroll
    for (int i = 0; i < FourMemory<T>::kBytes / FourMemory<T>::kVector; ++i) {
      const V* at = reinterpret_cast<const V*>(from) + i;
      raw[i] = again == Again::yes ? *at : __ldcs(at);
    }
    memcpy(&four, raw, sizeof four);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) four.values[i] = reinterpret_cast<const T*>(from)[i];
  }
  return four;
}

template <class T>
TERNGRAD_DEVICE void store_four(unsigned char* base, int64_t element, bool vectors, const Four<T>& four) {
  using V = typename FourMemory<T>::type;
  unsigned char* to = base + element * static_cast<int64_t>(sizeof(T));
  if (vectors) {
    V raw[FourMemory<T>::kBytes / FourMemory<T>::kVector];
    memcpy(raw, &four, sizeof four);
#pragma unroll
    for (int i = 0; i < FourMemory<T>::kBytes / FourMemory<T>::kVector; ++i)
      __stcs(reinterpret_cast<V*>(to) + i, raw[i]);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) reinterpret_cast<T*>(to)[i] = four.values[i];
  }
}

// Message bytes may lie anywhere.
TERNGRAD_DEVICE uint32_t load_word(const uint8_t* from) {
  if (is_aligned(from, 4)) return *reinterpret_cast<const uint32_t*>(from);
  return from[0] | static_cast<uint32_t>(from[1]) << 8 | static_cast<uint32_t>(from[2]) << 16 |
         static_cast<uint32_t>(from[3]) << 24;
}

TERNGRAD_DEVICE void store_bytes(uint8_t* to, uint32_t word) {
#pragma unroll
  for (int i = 0; i < 4; ++i) to[i] = static_cast<uint8_t>(word >> (8 * i));
}

TERNGRAD_DEVICE void store_word(uint8_t* to, uint32_t word) {
  if (is_aligned(to, 4)) return __stcs(reinterpret_cast<uint32_t*>(to), word);
  store_bytes(to, word);
}

TERNGRAD_DEVICE void store_floats(uint8_t* to, const float (&x)[4]) {
  if (is_aligned(to, 16)) {
    return __stcs(reinterpret_cast<uint4*>(to), uint4{bits_of(x[0]), bits_of(x[1]), bits_of(x[2]), bits_of(x[3])});
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) store_word(to + 4 * i, bits_of(x[i]));
}

// widen(), but of a NaN some NaN: an instruction.
template <class T>
TERNGRAD_DEVICE float converted(T x) {
  return static_cast<float>(x);
}
TERNGRAD_DEVICE float converted(Half x) {
#if defined(__CUDA_ARCH__)
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
  return wide;
#else
  return widen(x);
#endif
}

TERNGRAD_DEVICE float converted(BFloat16 x) { return widen(x); }

// Under a measured scale there is no NaN, and no limit below the scale; under a passed one there may be, and the sign
// of a NaN is that of its trit.
enum class ScaleOrigin { measured, passed };

template <ScaleOrigin O, class T>
TERNGRAD_DEVICE void widen_four(const Four<T>& four, float (&x)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) x[i] = O == ScaleOrigin::measured ? converted(four.values[i]) : widen(four.values[i]);
}

// Two at a time, without taking them apart first.
template <ScaleOrigin O>
TERNGRAD_DEVICE void widen_four(const Four<BFloat16>& four, float (&x)[4]) {
  uint32_t pairs[2];
  memcpy(pairs, &four, sizeof pairs);
#pragma unroll
  for (int i = 0; i < 4; ++i) x[i] = float_of(i % 2 == 0 ? pairs[i / 2] << 16 : pairs[i / 2] & 0xffff0000u);
}

TERNGRAD_DEVICE float load_scale(const uint8_t* from) { return float_of(load_word(from)); }

template <class T>
TERNGRAD_DEVICE T narrowed(float x) {
  T out;
  narrow(x, &out);
  return out;
}

// ---- tiles, pieces, layers

// What a warp works on: elements [begin, begin + count) of a piece.
struct Unit {
  int piece;
  int64_t index;  // among the piece's units
  int64_t begin;
  int32_t count;
  bool first;  // of the piece: whoever has it also writes what a piece has once
};

// Whether this warp has a unit of the tile; which one.
TERNGRAD_DEVICE bool has_unit(const Geometry& geometry, int64_t tile, Unit* unit) {
  const int64_t index = tile * kWarps + warp_of();
  if (index >= geometry.units) return false;
  unit->piece = find(geometry.piece_units, geometry.piece_count, index);
  unit->index = index - geometry.piece_units[unit->piece];
  unit->begin = unit->index * kUnit;
  unit->count = static_cast<int32_t>(smaller_of(kUnit, geometry.pieces[unit->piece].size - unit->begin));
  unit->first = unit->begin == 0;
  return true;
}

TERNGRAD_DEVICE unsigned char* address_of(const Bucket& bucket, const Piece& piece, int64_t element_bytes) {
  if (bucket.flat) return bucket.flat + piece.at * element_bytes;
  unsigned char* layer = bucket.layers ? bucket.layers[piece.layer] : bucket.few[piece.layer];
  return layer + piece.first * element_bytes;
}

TERNGRAD_DEVICE Message message_at(const Messages& messages, int64_t i) {
  return messages.many ? messages.many[i] : messages.few[i];
}

// Every gap is some block's.
TERNGRAD_DEVICE void zero_gaps(const Geometry& geometry, uint8_t* message) {
  for (int64_t i = blockIdx.x; i < geometry.gap_count; i += gridDim.x) {
    const Gap gap = geometry.gaps[i];
    for (int64_t at = gap.begin + threadIdx.x; at < gap.end; at += kThreads) message[at] = 0;
  }
}

TERNGRAD_DEVICE Scale carried_scale() { return Scale{1.0f, float_of(kInfinity32)}; }
TERNGRAD_DEVICE Scale scale_of_nothing() { return Scale{0.0f, float_of(kInfinity32)}; }

TERNGRAD_DEVICE Scale scale_for(const ScaleSource& source, const Piece& piece) {
  if (piece.packing == Packing::float32) return carried_scale();
  if (source.scale) return passed_scale(source.scale[piece.group], source.limit[piece.group]);
  // Past the first-level cache, since another block may have written it after this kernel began.
  const Scale* measured = source.measured + piece.group;
  return Scale{__ldcg(&measured->scale), __ldcg(&measured->limit)};
}

// ---- where elements come from, as float32

template <class T>
struct ArraySource {
  using type = T;
  const unsigned char* base;
  bool vectors;

  static __device__ __forceinline__ ArraySource at(const unsigned char* base) {
    return ArraySource{base, takes_vectors<T>(base)};
  }
  // A lane's part of four rows, as it lies in memory.
  struct Rows {
    Four<T> four[4];
  };
  // Of the rows whose first column, of this lane, is `element`; what is beyond the `there` elements of them is 0.
  __device__ __forceinline__ void load_rows(int64_t element, int there, Rows* rows) const {
    if (vectors && there >= kRowGroup) {
#pragma unroll
      for (int i = 0; i < 4; ++i) rows->four[i] = load_four<T>(base, element + i * kColumns, true, Again::no);
      return;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int at = i * static_cast<int>(kColumns) + j;
        rows->four[i].values[j] = T{};
        if (4 * lane_of() + at < there) rows->four[i].values[j] = reinterpret_cast<const T*>(base)[element + at];
      }
    }
  }
  template <ScaleOrigin O>
  static __device__ __forceinline__ void widen_rows(const Rows& rows, float (&x)[4][4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) widen_four<O>(rows.four[i], x[i]);
  }
  __device__ __forceinline__ float one(int64_t element) const {
    return widen(reinterpret_cast<const T*>(base)[element]);
  }
  __device__ __forceinline__ float carried_at(int64_t element) const {
    return carried(reinterpret_cast<const T*>(base)[element]);
  }
  __device__ __forceinline__ void carried_four(int64_t element, float (&x)[4]) const {
    const Four<T> four = load_four<T>(base, element, vectors, Again::no);
#pragma unroll
    for (int i = 0; i < 4; ++i) x[i] = carried(four.values[i]);
  }
};

// The trit or count of one element of a unit's payload.
TERNGRAD_DEVICE int value_at(Packing packing, const uint8_t* payload, int count, int element) {
  if (packing == Packing::counts16) {
    return static_cast<int16_t>(payload[2 * element] | static_cast<unsigned>(payload[2 * element + 1]) << 8);
  }
  const int tile = static_cast<int>(tile_of(packing));
  const int start = element / tile * tile;
  const int columns = static_cast<int>(payload_bytes(packing, smaller_of(tile, count - start)));
  const int inside = element - start;
  const uint8_t* bytes = payload + start / static_cast<int>(rows_of(packing));
  return value_in(packing, bytes[inside % columns], inside / columns);
}

TERNGRAD_DEVICE float value_of(Packing packing, const uint8_t* payload, int count, int element) {
  if (packing == Packing::float32) return float_of(load_word(payload + 4 * element));
  return static_cast<float>(value_at(packing, payload, count, element));
}

TERNGRAD_DEVICE int rows_in(Packing packing) {
  const bool tiled = packing != Packing::float32 && packing != Packing::counts16;
  return tiled ? static_cast<int>(rows_of(packing)) : 1;
}

// Rows of a unit that lie in whole tiles of a packing.
TERNGRAD_DEVICE int full_rows_of(Packing packing, int count) {
  const int rows = rows_in(packing);
  return count / (rows * static_cast<int>(kColumns)) * rows;
}

template <class Form>
TERNGRAD_DEVICE void values_of_tiled_row(const uint8_t* payload, int row, float (&x)[4]) {
  constexpr int kFormRows = static_cast<int>(Form::rows);
  const uint32_t word = load_word(payload + row / kFormRows * static_cast<int>(kColumns) + 4 * lane_of());
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    x[j] = static_cast<float>(value_in(Form::packing, word >> (8 * j) & 255u, row % kFormRows));
  }
}

// The trits, counts or carried values of a row of a unit that lies in whole tiles.
TERNGRAD_DEVICE void values_of_row(Packing packing, const uint8_t* payload, int row, float (&x)[4]) {
  const int element = row * static_cast<int>(kColumns) + 4 * lane_of();
  switch (packing) {
    case Packing::two_bit: return values_of_tiled_row<Tiled<Packing::two_bit>>(payload, row, x);
    case Packing::base3: return values_of_tiled_row<Tiled<Packing::base3>>(payload, row, x);
    case Packing::counts4: return values_of_tiled_row<Tiled<Packing::counts4>>(payload, row, x);
    case Packing::counts8: return values_of_tiled_row<Tiled<Packing::counts8>>(payload, row, x);
    case Packing::counts16:
#pragma unroll
      for (int j = 0; j < 4; j += 2) {
        const uint32_t pair = load_word(payload + 2 * (element + j));
        x[j] = static_cast<float>(static_cast<int16_t>(pair));
        x[j + 1] = static_cast<float>(static_cast<int16_t>(pair >> 16));
      }
      return;
    case Packing::float32:
#pragma unroll
      for (int j = 0; j < 4; ++j) x[j] = float_of(load_word(payload + 4 * (element + j)));
  }
}

// Of a whole unit: a multiple of 128, which a byte gives for each packing. (payload_bytes divides.)
TERNGRAD_DEVICE int unit_bytes(Packing packing) {
  static_assert(kUnit == 2560, "two_bit 5 x 128, base3 4, float32 80, counts4 10, counts8 20, counts16 40");
  return static_cast<int>(0x28140a500405u >> (8 * static_cast<int>(packing)) & 255u) * 128;
}

// Where the payload of the piece's unit `index` begins.
TERNGRAD_DEVICE int64_t payload_at(const Piece& piece, int64_t index) {
  return piece.payload_at + index * unit_bytes(piece.packing);
}

TERNGRAD_DEVICE const uint8_t* payload_of(const Message& message, const Piece& piece, int64_t index) {
  return message.data + payload_at(piece, index);
}

TERNGRAD_DEVICE float worth_in(const Message& message, const Piece& piece) {
  return piece.packing == Packing::float32 ? message.weight
                                           : message.weight * load_scale(message.data + piece.scale_at);
}

// ---- a word of a whole tile: its rows, each as the codes of four columns in the lowest bits of four bytes

// A sign alone, without the lower bit of the code, is 0.
TERNGRAD_DEVICE uint32_t fired_codes(uint32_t codes) { return codes & (codes & 0x55555555u) * 3u; }

TERNGRAD_DEVICE void rows_in_word(Tiled<Packing::two_bit>, uint32_t word, uint32_t (&rows)[4]) {
  const uint32_t codes = fired_codes(word);  // code 10 is 0
#pragma unroll
  for (int i = 0; i < 4; ++i) rows[i] = codes >> (2 * i);  // what is above two bits of a byte does not matter
}

// Two bytes side by side in 16 bits each; 171 / 512 is a third for all bytes.
TERNGRAD_DEVICE void rows_in_word(Tiled<Packing::base3>, uint32_t word, uint32_t (&rows)[5]) {
  uint32_t pairs[2] = {word & 0x00ff00ffu, word >> 8 & 0x00ff00ffu};
#pragma unroll
  for (int i = 0; i < 5; ++i) {
    uint32_t digits[2];
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const uint32_t thirds = pairs[k] * 171u >> 9 & 0x007f007fu;
      digits[k] = pairs[k] - 3u * thirds;
      pairs[k] = thirds;
    }
    const uint32_t all = digits[1] * 256u + digits[0];
    rows[i] = all + (all >> 1 & 0x01010101u);  // the digit 2 is the code 11
  }
}

// A row's four trits, a byte each: 0, 1 or 0xff.
TERNGRAD_DEVICE uint32_t trits_of(uint32_t row) { return (row & 0x01010101u) + (row >> 1 & 0x01010101u) * 0xfeu; }

// Half a trit as a float32 has one byte that is not 0, the highest: 0x3f, or 0xbf for -1. So a row's four trits are
// made together, a byte each, and twice the worth of one times the half is what it comes to, unless that overflows.
TERNGRAD_DEVICE uint32_t halves_of(uint32_t row) { return (row & 0x01010101u) * 0x3fu + (row << 6 & 0x80808080u); }

TERNGRAD_DEVICE float half_at(uint32_t halves, int column) {
  return float_of(__byte_perm(halves, 0u, static_cast<unsigned>(column) << 12 | 0x444u));
}

// sum + worth * trit, of a row; `twice` the worth.
TERNGRAD_DEVICE void add_row(uint32_t row, float twice, float (&sums)[4]) {
  const uint32_t halves = halves_of(row);
#pragma unroll
  for (int j = 0; j < 4; ++j) sums[j] = fmaf(twice, half_at(halves, j), sums[j]);
}

template <class Form>
TERNGRAD_DEVICE void add_word(Form form, uint32_t word, float twice, float (&sums)[Form::rows][4]) {
  uint32_t rows[Form::rows];
  rows_in_word(form, word, rows);
#pragma unroll
  for (int i = 0; i < static_cast<int>(Form::rows); ++i) add_row(rows[i], twice, sums[i]);
}

// Four rows that begin at row Offset of a tile of base3 and may go on in the next.
template <int Offset>
TERNGRAD_DEVICE void add_rows_of_base3(const uint8_t* tile, float twice, float (&sums)[4][4]) {
  uint32_t rows[2][5];
  rows_in_word(Tiled<Packing::base3>{}, load_word(tile), rows[0]);
  if (Offset > 1) rows_in_word(Tiled<Packing::base3>{}, load_word(tile + kColumns), rows[1]);
#pragma unroll
  for (int i = 0; i < 4; ++i) add_row(rows[(Offset + i) / 5][(Offset + i) % 5], twice, sums[i]);
}

// Rows `first` to first + 3 of a unit; `first` is a multiple of 4.
TERNGRAD_DEVICE void add_rows(Packing packing, const uint8_t* payload, int first, float twice, float (&sums)[4][4]) {
  const uint8_t* column = payload + 4 * lane_of();
  if (packing == Packing::two_bit) {
    return add_word(Tiled<Packing::two_bit>{}, load_word(column + first / 4 * kColumns), twice, sums);
  }
  const uint8_t* tile = column + first / 5 * kColumns;
  switch (first % 5) {
    case 0: return add_rows_of_base3<0>(tile, twice, sums);
    case 1: return add_rows_of_base3<1>(tile, twice, sums);
    case 2: return add_rows_of_base3<2>(tile, twice, sums);
    case 3: return add_rows_of_base3<3>(tile, twice, sums);
    default: return add_rows_of_base3<4>(tile, twice, sums);
  }
}

// Whether twice of it is not finite, perhaps.
TERNGRAD_DEVICE bool is_extreme(float worth) { return fabsf(worth) >= 0x1p127f; }

// The float32 sum of messages, of one piece.
struct SumSource {
  const Messages* messages;
  int64_t piece_index;
  bool poisoned;
  bool has_extreme;  // worth of a message

  static __device__ __forceinline__ SumSource at(const Messages& messages, int64_t piece) {
    bool poisoned = false;
    bool extreme = false;
    for (int64_t i = lane_of(); i < messages.count; i += kWarp) {
      const Message message = message_at(messages, i);
      const Piece& own = message.pieces[piece];
      if (own.packing == Packing::float32) continue;
      const float scale = load_scale(message.data + own.scale_at);
      if (is_poisoned(scale)) poisoned = true;
      if (is_extreme(message.weight * scale)) extreme = true;
    }
    return SumSource{&messages, piece, __any_sync(kAllLanes, poisoned) != 0, __any_sync(kAllLanes, extreme) != 0};
  }
  __device__ __noinline__ float one(int64_t element) const {
    if (poisoned) return float_of(kNaN32);
    const int64_t index = element / kUnit;
    const int64_t begin = index * kUnit;
    float sum = 0.0f;
    for (int64_t i = 0; i < messages->count; ++i) {
      const Message message = message_at(*messages, i);
      const Piece& own = message.pieces[piece_index];
      const uint8_t* payload = payload_of(message, own, index);
      const int inside = static_cast<int>(element - begin);
      const int count = static_cast<int>(smaller_of(kUnit, own.size - begin));
      sum = fmaf(worth_in(message, own), value_of(own.packing, payload, count, inside), sum);
    }
    return sum == sum ? sum : float_of(kNaN32);
  }
  __device__ __forceinline__ float carried_at(int64_t element) const { return one(element); }
  __device__ __forceinline__ void carried_four(int64_t element, float (&x)[4]) const {
    for (int i = 0; i < 4; ++i) x[i] = one(element + i);
  }
  struct Rows {
    float x[4][4];
  };
  // As ArraySource's. Each message's payload is looked up once for all of the rows. (Inlined, it would take all
  // registers.)
  __device__ __noinline__ void load_rows(int64_t element, int there, Rows* rows) const {
    const int64_t index = element / kUnit;
    const int64_t begin = index * kUnit;
    const int row = static_cast<int>(element - begin) / static_cast<int>(kColumns);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) rows->x[i][j] = 0.0f;
    }
    bool whole = !poisoned && there >= kRowGroup;
    for (int64_t m = 0; m < messages->count && whole; ++m) {
      const Piece& own = message_at(*messages, m).pieces[piece_index];
      whole = row + 4 <= full_rows_of(own.packing, static_cast<int>(smaller_of(kUnit, own.size - begin)));
    }
    if (!whole) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        for (int j = 0; j < 4; ++j) {
          const int at = i * static_cast<int>(kColumns) + j;
          if (4 * lane_of() + at < there) rows->x[i][j] = one(element + at);
        }
      }
      return;
    }
    for (int64_t m = 0; m < messages->count; ++m) {
      const Message message = message_at(*messages, m);
      const Piece& own = message.pieces[piece_index];
      const float worth = worth_in(message, own);
      const uint8_t* payload = payload_of(message, own, index);
      if (is_ternary(own.packing) && !has_extreme) {
        add_rows(own.packing, payload, row, 2.0f * worth, rows->x);
        continue;
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float values[4];
        values_of_row(own.packing, payload, row + i, values);
#pragma unroll
        for (int j = 0; j < 4; ++j) rows->x[i][j] = fmaf(worth, values[j], rows->x[i][j]);
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float x = rows->x[i][j];
        rows->x[i][j] = x == x ? x : float_of(kNaN32);
      }
    }
  }
  template <ScaleOrigin>
  static __device__ __forceinline__ void widen_rows(const Rows& rows, float (&x)[4][4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) x[i][j] = rows.x[i][j];
    }
  }
};

// ---- random bits

TERNGRAD_DEVICE uint64_t word_at(uint64_t number, const uint32_t* address) {
  return address ? address[0] | static_cast<uint64_t>(address[1]) << 32 : number;
}

TERNGRAD_DEVICE Draw draw_of(const Draws& draws, const Piece& piece) {
  return Draw{word_at(draws.seed, draws.seed_at), word_at(draws.offset, draws.offset_at),
              draws.layer + static_cast<uint32_t>(piece.layer)};
}

// Twice u, and a bit more, in one instruction: bytes 0 to 3 are y's, 4 to 7 w's.
template <int I, int J>
TERNGRAD_DEVICE uint32_t random_at(const PhiloxWords& words) {
  const uint32_t y = words.w[(I + 1) % 4] ^ words.w[(I + 2) % 4];
  constexpr unsigned kPlaces = (J + 2) % 4 | (J + 1) % 4 << 4 | J << 8 | (4 + J) << 12;
  return __byte_perm(y, words.w[I], kPlaces);
}

// -T: the conversion stops at -2^31, which is the bound where nothing else is.
template <ScaleOrigin O>
TERNGRAD_DEVICE uint32_t negative_threshold(float x, const Quantiser& quantiser) {
  float scaled = fabsf(x) * quantiser.inverse;
  if (O == ScaleOrigin::passed) scaled = fminf(scaled, quantiser.bound);  // which is the bound for a NaN
  return static_cast<uint32_t>(__float2int_rz(-scaled));
}

// Codes of two_bit come in from the right, the last element's first: the sign of x, and that of u - T, which is set
// where the element fires.
template <ScaleOrigin O, int Element = 15>
TERNGRAD_DEVICE void push_codes(const float (&x)[4][4], const PhiloxWords& words, const Quantiser& quantiser,
                                uint32_t* codes) {
  constexpr int kRow = Element % 4;
  constexpr int kColumn = Element / 4;
  const float value = x[kRow][kColumn];
  const uint32_t difference = (random_at<kRow, kColumn>(words) >> 1) + negative_threshold<O>(value, quantiser);
  *codes = __funnelshift_l(bits_of(value), *codes, 1);
  *codes = __funnelshift_l(difference, *codes, 1);
  if constexpr (Element > 0) push_codes<O, Element - 1>(x, words, quantiser, codes);
}

// A unit's trits: word g has rows 4 g to 4 g + 3 of the lane's columns, as the word of a two_bit payload has them.
constexpr int kGroups = kRows / 4;
struct Codes {
  uint32_t words[kGroups];
};

// `ahead`: what source.load_rows gives for the unit's first rows; the next ones are under way while some are drawn.
template <ScaleOrigin O, class Source>
TERNGRAD_DEVICE Codes draw_unit(const Source& source, typename Source::Rows ahead, const Unit& unit, const Piece& piece,
                                const Draw& draw, const Quantiser& quantiser) {
  const uint32_t block = block_of(piece.first + unit.begin) + static_cast<uint32_t>(lane_of());
  const int64_t first = unit.begin + 4 * lane_of();
  Codes codes = {};
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
    const int rest = unit.count - (group + 1) * kRowGroup;
    if (rest <= -kRowGroup) break;
    float x[4][4];
    Source::template widen_rows<O>(ahead, x);
    if (group + 1 < kGroups && rest > 0) source.load_rows(first + (group + 1) * kRowGroup, rest, &ahead);
    push_codes<O>(x, philox_block(draw, block + static_cast<uint32_t>(32 * group)), quantiser, &codes.words[group]);
    codes.words[group] = fired_codes(codes.words[group]);
  }
  return codes;
}

template <class Source>
TERNGRAD_DEVICE typename Source::Rows first_rows(const Source& source, const Unit& unit) {
  typename Source::Rows rows;
  source.load_rows(unit.begin + 4 * lane_of(), unit.count, &rows);
  return rows;
}

// ---- packing a unit

// Of shared memory, for the codes of a warp's unit.
using Staging = uint32_t[kGroups][kWarp];

template <int Count>
TERNGRAD_DEVICE void store_tiles(uint8_t* payload, const uint32_t (&words)[Count], int tiles) {
  uint8_t* to = payload + 4 * lane_of();
  if (is_aligned(payload, 4)) {
#pragma unroll
    for (int tile = 0; tile < Count; ++tile) {
      if (tile < tiles) __stcs(reinterpret_cast<uint32_t*>(to + tile * kColumns), words[tile]);
    }
  } else {
#pragma unroll
    for (int tile = 0; tile < Count; ++tile) {
      if (tile < tiles) store_bytes(to + tile * kColumns, words[tile]);
    }
  }
}

// Five rows of digits, which are what a code is less its upper bit.
TERNGRAD_DEVICE void store_base3(uint8_t* payload, const Codes& codes, int tiles) {
  constexpr int kTiles = kRows / 5;
  uint32_t words[kTiles] = {};
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
    const uint32_t digits = codes.words[group] - (codes.words[group] >> 1 & 0x55555555u);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = 4 * group + i;
      words[row / 5] += (digits >> (2 * i) & 0x03030303u) * power_of_three(row % 5);
    }
  }
  store_tiles(payload, words, tiles);
}

// Packs a unit's first `count` trits.
template <class Form>
TERNGRAD_DEVICE void pack_unit(const Codes& codes, int count, uint8_t* payload, Staging* staging) {
  constexpr int kFormRows = static_cast<int>(Form::rows);
  constexpr int kFormTile = static_cast<int>(Form::tile);
  const int tiles = count / kFormTile;
  if constexpr (Form::packing == Packing::base3) {
    store_base3(payload, codes, tiles);
  } else {
    store_tiles(payload, codes.words, tiles);
  }
  const int start = tiles * kFormTile;
  const int rest = count - start;
  if (rest == 0) return;
  // The last tile has columns of its own: its trits change lanes.
#pragma unroll
  for (int group = 0; group < kGroups; ++group) (*staging)[group][lane_of()] = codes.words[group];
  __syncwarp();
  const auto* columns_of_four = reinterpret_cast<const uint8_t*>(staging);
  const int columns = (rest + kFormRows - 1) / kFormRows;
  for (int column = lane_of(); column < columns; column += kWarp) {
    uint32_t byte = 0;
    for (int row = 0; row < kFormRows; ++row) {
      const int inside = row * columns + column;
      if (inside >= rest) break;
      const int element = start + inside;
      const int in_group = element % kRowGroup;
      const uint32_t four = columns_of_four[element / kRowGroup * kColumns + in_group % kColumns];
      const auto trit = value_in(Packing::two_bit, four, in_group / kColumns);
      byte += code_of(Form::packing, trit, row);
    }
    payload[start / kFormRows + column] = static_cast<uint8_t>(byte);
  }
}

// ---- launches

inline cudaLaunchConfig_t grid_of(int64_t blocks, cudaStream_t stream) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(kThreads);
  config.stream = stream;
  return config;
}

}  // namespace
}  // namespace cuda
}  // namespace terngrad
