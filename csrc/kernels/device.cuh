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

TERNGRAD_DEVICE int lane_of() { return static_cast<int>(threadIdx.x) % kWarp; }
// The same in all lanes, by which the compiler sees that what follows from it is, and takes far fewer registers.
TERNGRAD_DEVICE int warp_of() { return __shfl_sync(kAllLanes, static_cast<int>(threadIdx.x) / kWarp, 0); }

TERNGRAD_DEVICE int64_t smaller_of(int64_t a, int64_t b) { return a < b ? a : b; }

// The last i < count whose starts[i] is at most `item`; starts[0] is 0 and they ascend. 32 guesses at a time.
TERNGRAD_DEVICE int64_t find(const int64_t* starts, int64_t count, int64_t item) {
  int64_t first = 0;
  while (count > 1) {
    const int64_t step = (count + kWarp - 1) / kWarp;
    const int64_t guess = lane_of() * step;
    const bool before = guess < count && starts[first + guess] <= item;
    const int64_t right = __popc(__ballot_sync(kAllLanes, before)) - 1;
    first += right * step;
    count = smaller_of(step, count - right * step);
  }
  return first;
}

// ---- memory

TERNGRAD_DEVICE bool is_aligned(const void* address, int bytes) {
  return reinterpret_cast<uintptr_t>(address) % static_cast<unsigned>(bytes) == 0;
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

TERNGRAD_DEVICE void store_word(uint8_t* to, uint32_t word) {
  if (is_aligned(to, 4)) return __stcs(reinterpret_cast<uint32_t*>(to), word);
#pragma unroll
  for (int i = 0; i < 4; ++i) to[i] = static_cast<uint8_t>(word >> (8 * i));
}

TERNGRAD_DEVICE void store_floats(uint8_t* to, const float (&x)[4]) {
  if (is_aligned(to, 16)) {
    return __stcs(reinterpret_cast<uint4*>(to), uint4{bits_of(x[0]), bits_of(x[1]), bits_of(x[2]), bits_of(x[3])});
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) store_word(to + 4 * i, bits_of(x[i]));
}

template <class T>
TERNGRAD_DEVICE void widen_four(const Four<T>& four, float (&x)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) x[i] = widen(four.values[i]);
}

// widen() of two at a time, without taking them apart first.
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
  int64_t piece;
  int64_t begin;
  int32_t count;
  bool first;  // of the piece: whoever has it also writes what a piece has once
};

// Whether this warp has a unit of the tile; which one.
TERNGRAD_DEVICE bool has_unit(const Geometry& geometry, int64_t tile, Unit* unit) {
  const int64_t index = tile * kWarps + warp_of();
  if (index >= geometry.units) return false;
  unit->piece = find(geometry.piece_units, geometry.piece_count, index);
  unit->begin = (index - geometry.piece_units[unit->piece]) * kUnit;
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
  // Four neighbours, the first a multiple of 4 of the piece or group.
  __device__ __forceinline__ void load(int64_t element, float (&x)[4], Again again = Again::yes) const {
    widen_four(load_four<T>(base, element, vectors, again), x);
  }
  // The same of some rows, the first `rows` of them, which are 0 before.
  __device__ __forceinline__ void load_rows(int64_t element, int rows, float (&x)[4][4]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i < rows) load(element + i * kColumns, x[i], Again::no);
    }
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

TERNGRAD_DEVICE const uint8_t* payload_of(const Message& message, const Piece& piece, int64_t begin) {
  return message.data + piece.payload_at + payload_bytes(piece.packing, begin);
}

TERNGRAD_DEVICE float worth_in(const Message& message, const Piece& piece) {
  return piece.packing == Packing::float32 ? message.weight
                                           : message.weight * load_scale(message.data + piece.scale_at);
}

// The float32 sum of messages, of one piece.
struct SumSource {
  const Messages* messages;
  int64_t piece_index;
  bool poisoned;
  bool is_extreme;  // twice a message's worth may overflow

  static __device__ __forceinline__ SumSource at(const Messages& messages, int64_t piece) {
    bool poisoned = false;
    bool extreme = false;
    for (int64_t i = lane_of(); i < messages.count; i += kWarp) {
      const Message message = message_at(messages, i);
      const Piece& own = message.pieces[piece];
      if (own.packing == Packing::float32) continue;
      const float scale = load_scale(message.data + own.scale_at);
      if (is_poisoned(scale)) poisoned = true;
      if (fabsf(message.weight * scale) >= 0x1p127f) extreme = true;
    }
    return SumSource{&messages, piece, __any_sync(kAllLanes, poisoned) != 0, __any_sync(kAllLanes, extreme) != 0};
  }
  __device__ __noinline__ float one(int64_t element) const {
    if (poisoned) return float_of(kNaN32);
    const int64_t begin = element / kUnit * kUnit;
    float sum = 0.0f;
    for (int64_t i = 0; i < messages->count; ++i) {
      const Message message = message_at(*messages, i);
      const Piece& own = message.pieces[piece_index];
      const uint8_t* payload = payload_of(message, own, begin);
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
  // Each message's payload is looked up once for all of the rows. (Inlined, it would take all registers.)
  __device__ __noinline__ void load_rows(int64_t element, int rows, float (&x)[4][4]) const {
    const int64_t begin = element / kUnit * kUnit;
    const int row = static_cast<int>(element - begin) / static_cast<int>(kColumns);
    bool whole = !poisoned;
    for (int64_t m = 0; m < messages->count && whole; ++m) {
      const Piece& own = message_at(*messages, m).pieces[piece_index];
      whole = row + rows <= full_rows_of(own.packing, static_cast<int>(smaller_of(kUnit, own.size - begin)));
    }
    if (!whole) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        for (int j = 0; j < 4 && i < rows; ++j) x[i][j] = one(element + i * kColumns + j);
      }
      return;
    }
    for (int64_t m = 0; m < messages->count; ++m) {
      const Message message = message_at(*messages, m);
      const Piece& own = message.pieces[piece_index];
      const float worth = worth_in(message, own);
      const uint8_t* payload = payload_of(message, own, begin);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (i >= rows) break;
        float values[4];
        values_of_row(own.packing, payload, row + i, values);
#pragma unroll
        for (int j = 0; j < 4; ++j) x[i][j] = fmaf(worth, values[j], x[i][j]);
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) x[i][j] = x[i][j] == x[i][j] ? x[i][j] : float_of(kNaN32);
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

// uniform_of in two instructions: bytes 0 to 3 are y's, 4 to 7 w's.
template <int I, int J>
TERNGRAD_DEVICE uint32_t uniform_at(const PhiloxWords& words) {
  const uint32_t y = words.w[(I + 1) % 4] ^ words.w[(I + 2) % 4];
  constexpr unsigned kPlaces = (J + 2) % 4 | (J + 1) % 4 << 4 | J << 8 | (4 + J) << 12;
  return __byte_perm(y, words.w[I], kPlaces) >> 1;
}

// A lane's trits of four rows, as their patterns: [row][column].
struct Trits {
  uint32_t t[4][4];
};

template <int I, int J = 0>
TERNGRAD_DEVICE void trits_of_row(const float (&x)[4], const PhiloxWords& words, const Quantiser& quantiser,
                                  Trits* to) {
  to->t[I][J] = pattern_of(x[J], threshold_of(x[J], quantiser), uniform_at<I, J>(words));
  if constexpr (J < 3) trits_of_row<I, J + 1>(x, words, quantiser, to);
}

// The trits of a unit that is ternarized, by groups of four rows.
template <class Source>
class DrawnTrits {
 public:
  __device__ __forceinline__ DrawnTrits(const Source& from, const Draw& bits, const Quantiser& by, int64_t from_element,
                                        const Piece& piece, int elements)
      : source(from), draw(bits), quantiser(by), begin(from_element), layer_from(piece.first), count(elements) {}

  // Of the first `rows` of a group's four rows, all of them in the unit; the others come out as rubbish.
  __device__ __forceinline__ Trits whole(int group, int rows) const {
    const int64_t element = begin + group * kRowGroup + 4 * lane_of();
    float x[4][4] = {};
    source.load_rows(element, rows, x);
    return drawn(element, x);
  }
  // Of those elements of a group that are in the unit.
  __device__ __forceinline__ Trits some(int group) const {
    const int first = group * kRowGroup + 4 * lane_of();
    float x[4][4] = {};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int at = first + i * static_cast<int>(kColumns) + j;
        if (at < count) x[i][j] = source.one(begin + at);
      }
    }
    return drawn(begin + first, x);
  }

 private:
  __device__ __forceinline__ Trits drawn(int64_t element, const float (&x)[4][4]) const {
    const PhiloxWords words = philox_block(draw, block_of(layer_from + element));
    Trits trits;
    trits_of_row<0>(x[0], words, quantiser, &trits);
    trits_of_row<1>(x[1], words, quantiser, &trits);
    trits_of_row<2>(x[2], words, quantiser, &trits);
    trits_of_row<3>(x[3], words, quantiser, &trits);
    return trits;
  }

  const Source& source;
  const Draw& draw;
  const Quantiser& quantiser;
  int64_t begin;       // the unit's first element in the piece
  int64_t layer_from;  // the piece's first element in the layer
  int count;
};

// ---- packing a unit

constexpr int kMostTile = 640;
static_assert(kMostTile >= Tiled<Packing::base3>::tile && kMostTile >= Tiled<Packing::two_bit>::tile, "of trits");

// The payload's word with a trit in a row of its tile and a column of the lane's four.
template <class Form>
TERNGRAD_DEVICE uint32_t with_trit(uint32_t word, uint32_t pattern, int row, int column) {
  if (Form::packing == Packing::two_bit) return word | (pattern & 3u << (2 * row + 8 * column));
  return word + (power_of_three(row) * ((pattern & 1u) + (pattern >> 31)) << (8 * column));
}

// Packs `count` trits, which `trits` gives for rows 4 g to 4 g + 3 as above. `staging`: kMostTile bytes of shared
// memory of this warp.
template <class Form, class Rows>
TERNGRAD_DEVICE void pack_unit(const Rows& trits, int count, uint8_t* payload, int8_t* staging) {
  constexpr int kFormRows = static_cast<int>(Form::rows);
  constexpr int kFormTile = static_cast<int>(Form::tile);
  const int full_rows = count / kFormTile * kFormRows;
  uint32_t word = 0;
#pragma unroll
  for (int group = 0; group < kRows / 4; ++group) {
    if (4 * group >= full_rows) break;
    const int rows = kFormRows == 4 ? 4 : full_rows - 4 * group;
    const Trits found = trits.whole(group, rows);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = 4 * group + i;
      if (i >= rows) break;
#pragma unroll
      for (int j = 0; j < 4; ++j) word = with_trit<Form>(word, found.t[i][j], row % kFormRows, j);
      if (row % kFormRows == kFormRows - 1) {
        store_word(payload + row / kFormRows * kColumns + 4 * lane_of(), word);
        word = 0;
      }
    }
  }
  const int start = full_rows * static_cast<int>(kColumns);
  const int rest = count - start;
  if (rest == 0) return;
  // The last tile has columns of its own: its trits change lanes.
  for (int group = full_rows / 4; group * kRowGroup < count; ++group) {
    const Trits found = trits.some(group);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int element = group * kRowGroup + i * static_cast<int>(kColumns) + 4 * lane_of() + j;
        if (element >= start && element < count) staging[element - start] = trit_in(found.t[i][j]);
      }
    }
  }
  __syncwarp();
  const int columns = static_cast<int>(payload_bytes(Form::packing, rest));
  for (int column = lane_of(); column < columns; column += kWarp) {
    uint32_t byte = 0;
#pragma unroll
    for (int row = 0; row < kFormRows; ++row) {
      const int element = row * columns + column;
      if (element < rest) byte += code_of(Form::packing, staging[element], row);
    }
    payload[start / kFormRows + column] = static_cast<uint8_t>(byte);
  }
  __syncwarp();
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
