// A word of a payload is four columns of a whole tile: a lane turns it into the tile's rows. The sums of several
// messages stay in registers, so that every output element is written once.
#include "device.cuh"

namespace terngrad {
namespace cuda {

namespace {

// worth * t, which is exact, of a row's four trits, as the output takes it. (-worth and worth * -1 are the same bits,
// but of a NaN.)
template <class T>
struct Worth {
  T zero;
  T plus;
  T minus;

  explicit __device__ __forceinline__ Worth(float worth)
      : zero(narrowed<T>(worth * 0.0f)), plus(narrowed<T>(worth)), minus(narrowed<T>(-worth)) {}
  __device__ __forceinline__ Four<T> of(uint32_t row) const {
    Four<T> four;
    if constexpr (sizeof(T) == 2) {
      // Of the eight bytes zero, plus, nothing, minus, a code's are 2 code and 2 code + 1.
      const uint32_t low = zero.bits | static_cast<uint32_t>(plus.bits) << 16;
      const uint32_t places = (row & 0x03030303u) * 0x22u + 0x10101010u;
      const uint32_t high = static_cast<uint32_t>(minus.bits) << 16;
      const uint32_t pairs[2] = {__byte_perm(low, high, places), __byte_perm(low, high, places >> 16)};
      memcpy(&four, pairs, sizeof four);
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j) four.values[j] = row >> (8 * j) & 1u ? (row >> (8 * j) & 2u ? minus : plus) : zero;
    }
    return four;
  }
};

template <>
struct Worth<float> {
  float twice;

  explicit __device__ __forceinline__ Worth(float worth) : twice(2.0f * worth) {}
  __device__ __forceinline__ Four<float> of(uint32_t row) const {
    const uint32_t halves = halves_of(row);
    Four<float> four;
#pragma unroll
    for (int j = 0; j < 4; ++j) four.values[j] = twice * half_at(halves, j);
    return four;
  }
};

// One unit of the output.
template <class T>
struct Output {
  unsigned char* base;
  bool vectors;

  __device__ __forceinline__ void store(int row, const Four<T>& four) const {
    store_four<T>(base, row * static_cast<int>(kColumns) + 4 * lane_of(), vectors, four);
  }
  __device__ __forceinline__ void store(int row, const float (&x)[4]) const {
    Four<T> four;
#pragma unroll
    for (int j = 0; j < 4; ++j) four.values[j] = narrowed<T>(x[j]);
    store(row, four);
  }
  __device__ __forceinline__ void load(int row, float (&x)[4]) const {
    const Four<T> four = load_four<T>(base, row * static_cast<int>(kColumns) + 4 * lane_of(), vectors, Again::no);
#pragma unroll
    for (int j = 0; j < 4; ++j) x[j] = widen(four.values[j]);
  }
  __device__ __forceinline__ void store_one(int element, float x) const {
    reinterpret_cast<T*>(base)[element] = narrowed<T>(x);
  }
  __device__ __forceinline__ float one(int element) const { return widen(reinterpret_cast<const T*>(base)[element]); }
};

template <class T>
TERNGRAD_DEVICE Output<T> output_of(const Bucket& out, const Piece& piece, int64_t begin) {
  const auto bytes = static_cast<int64_t>(sizeof(T));
  unsigned char* base = address_of(out, piece, bytes) + begin * bytes;
  return Output<T>{base, takes_vectors<T>(base)};
}

template <class T>
TERNGRAD_DEVICE void fill_nan(const Output<T>& out, int count) {
  const T nan = narrowed<T>(float_of(kNaN32));
  for (int i = lane_of(); i < count; i += kWarp) reinterpret_cast<T*>(out.base)[i] = nan;
}

// ---- one message, written

template <class Form, class T>
TERNGRAD_DEVICE void write_tiles(const uint8_t* payload, int full_rows, float worth, const Output<T>& out) {
  constexpr int kFormRows = static_cast<int>(Form::rows);
  constexpr int kTiles = kRows / kFormRows;
  const Worth<T> values(worth);
  uint32_t words[kTiles];
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    words[tile] = 0;
    if (tile * kFormRows < full_rows) words[tile] = load_word(payload + tile * kColumns + 4 * lane_of());
  }
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    if (tile * kFormRows >= full_rows) break;
    uint32_t rows[kFormRows];
    rows_in_word(Form{}, words[tile], rows);
#pragma unroll
    for (int i = 0; i < kFormRows; ++i) out.store(tile * kFormRows + i, values.of(rows[i]));
  }
}

// A float32 payload with worth 1 is copied.
TERNGRAD_DEVICE float written(Packing packing, float worth, float value) {
  return packing == Packing::float32 && worth == 1.0f ? value : worth * value;
}

template <class T>
TERNGRAD_DEVICE void write_unit(const uint8_t* payload, Packing packing, int count, float worth, const Output<T>& out) {
  const int full_rows = is_extreme(worth) && sizeof(T) == 4 ? 0 : full_rows_of(packing, count);
  if (packing == Packing::two_bit) {
    write_tiles<Tiled<Packing::two_bit>>(payload, full_rows, worth, out);
  } else if (packing == Packing::base3) {
    write_tiles<Tiled<Packing::base3>>(payload, full_rows, worth, out);
  } else {
    for (int row = 0; row < full_rows; ++row) {
      float x[4];
      values_of_row(packing, payload, row, x);
#pragma unroll
      for (int j = 0; j < 4; ++j) x[j] = written(packing, worth, x[j]);
      out.store(row, x);
    }
  }
  for (int i = full_rows * static_cast<int>(kColumns) + lane_of(); i < count; i += kWarp) {
    out.store_one(i, written(packing, worth, value_of(packing, payload, count, i)));
  }
}

template <class T>
__global__ __launch_bounds__(kThreads) void decode_array(const __grid_constant__ Geometry geometry,
                                                         const __grid_constant__ Messages messages,
                                                         const __grid_constant__ Bucket out) {
  Unit unit;
  if (!has_unit(geometry, blockIdx.x, &unit) || unit.count == 0) return;
  const Piece& piece = geometry.pieces[unit.piece];
  const Message message = message_at(messages, 0);
  const bool carries = piece.packing == Packing::float32;
  const float scale = carries ? 1.0f : load_scale(message.data + piece.scale_at);
  const Output<T> to = output_of<T>(out, piece, unit.begin);
  if (is_poisoned(scale)) return fill_nan(to, unit.count);
  write_unit(payload_of(message, piece, unit.index), piece.packing, unit.count, message.weight * scale, to);
}

// ---- several messages, added

// What a lane knows of one message: where the unit's payload lies, and twice what a trit of it is worth.
struct Summand {
  const uint8_t* payload;
  float twice;
};

TERNGRAD_DEVICE Summand summand_of(const Messages& messages, const Piece& piece, const Unit& unit, int64_t index) {
  if (index >= messages.count) return Summand{nullptr, 0.0f};
  const Message message = message_at(messages, index);
  return Summand{payload_of(message, piece, unit.index), 2.0f * worth_in(message, piece)};
}

// Words that are under way together.
constexpr int kAhead = 4;
static_assert(kWarp % kAhead == 0, "lanes are asked for by as many");

template <bool Aligned>
TERNGRAD_DEVICE void load_words(const Summand& own, int from, int there, int64_t at, uint32_t (&words)[kAhead]) {
#pragma unroll
  for (int k = 0; k < kAhead; ++k) {
    const auto address = __shfl_sync(kAllLanes, reinterpret_cast<uint64_t>(own.payload), from + k);
    if (from + k >= there) continue;
    const auto* payload = reinterpret_cast<const uint8_t*>(address) + at;
    words[k] = Aligned ? __ldcs(reinterpret_cast<const uint32_t*>(payload)) : load_word(payload);
  }
}

// Trits: the sums of a tile's rows side by side, so that each word is read once. 32 messages at a time are looked up,
// by a lane each.
template <class Form, class T>
TERNGRAD_DEVICE void sum_tiles(const Messages& messages, const Piece& piece, const Unit& unit, int full_rows,
                               bool fresh, const Output<T>& out) {
  constexpr int kFormRows = static_cast<int>(Form::rows);
  Summand own = summand_of(messages, piece, unit, lane_of());
  for (int tile = 0; tile * kFormRows < full_rows; ++tile) {
    float sums[Form::rows][4] = {};
    if (!fresh) {
#pragma unroll
      for (int i = 0; i < kFormRows; ++i) out.load(tile * kFormRows + i, sums[i]);
    }
    const int64_t at = tile * kColumns + 4 * lane_of();
    for (int64_t first = 0; first < messages.count; first += kWarp) {
      if (messages.count > kWarp) own = summand_of(messages, piece, unit, first + lane_of());
      const bool aligned = __all_sync(kAllLanes, is_aligned(own.payload, 4)) != 0;
      const int there = static_cast<int>(smaller_of(kWarp, messages.count - first));
      for (int from = 0; from < there; from += kAhead) {
        uint32_t words[kAhead];
        if (aligned) {
          load_words<true>(own, from, there, at, words);
        } else {
          load_words<false>(own, from, there, at, words);
        }
#pragma unroll
        for (int k = 0; k < kAhead; ++k) {
          const float twice = __shfl_sync(kAllLanes, own.twice, from + k);
          if (from + k < there) add_word(Form{}, words[k], twice, sums);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kFormRows; ++i) out.store(tile * kFormRows + i, sums[i]);
  }
}

// Counts and carried values: row by row.
template <class T>
TERNGRAD_DEVICE void sum_rows(const Messages& messages, const Piece& piece, const Unit& unit, int full_rows, bool fresh,
                              const Output<T>& out) {
  for (int row = 0; row < full_rows; ++row) {
    float sums[4] = {};
    if (!fresh) out.load(row, sums);
    for (int64_t m = 0; m < messages.count; ++m) {
      const Message message = message_at(messages, m);
      const float worth = worth_in(message, piece);
      float x[4];
      values_of_row(piece.packing, payload_of(message, piece, unit.index), row, x);
#pragma unroll
      for (int j = 0; j < 4; ++j) sums[j] = fmaf(worth, x[j], sums[j]);
    }
    out.store(row, sums);
  }
}

template <class T>
__global__ __launch_bounds__(kThreads, 2) void decode_sum_array(const __grid_constant__ Geometry geometry,
                                                                const __grid_constant__ Messages messages, bool fresh,
                                                                const __grid_constant__ Bucket out) {
  Unit unit;
  if (!has_unit(geometry, blockIdx.x, &unit) || unit.count == 0) return;
  const Piece& piece = geometry.pieces[unit.piece];
  const Output<T> to = output_of<T>(out, piece, unit.begin);
  const SumSource sum = SumSource::at(messages, unit.piece);
  if (sum.poisoned) return fill_nan(to, unit.count);
  const int full_rows = sum.has_extreme ? 0 : full_rows_of(piece.packing, unit.count);
  if (piece.packing == Packing::two_bit) {
    sum_tiles<Tiled<Packing::two_bit>>(messages, piece, unit, full_rows, fresh, to);
  } else if (piece.packing == Packing::base3) {
    sum_tiles<Tiled<Packing::base3>>(messages, piece, unit, full_rows, fresh, to);
  } else {
    sum_rows(messages, piece, unit, full_rows, fresh, to);
  }
  for (int i = full_rows * static_cast<int>(kColumns) + lane_of(); i < unit.count; i += kWarp) {
    float x = fresh ? 0.0f : to.one(i);
    for (int64_t m = 0; m < messages.count; ++m) {
      const Message message = message_at(messages, m);
      const float value = value_of(piece.packing, payload_of(message, piece, unit.index), unit.count, i);
      x = fmaf(worth_in(message, piece), value, x);
    }
    to.store_one(i, x);
  }
}

}  // namespace

cudaError_t decode(const Geometry& geometry, const Messages& messages, DType dtype, const Bucket& out,
                   cudaStream_t stream) {
  const cudaLaunchConfig_t config = grid_of(geometry.tiles, stream);
  cudaError_t error = cudaSuccess;
  with_dtype(dtype, [&](auto stored) {
    error = cudaLaunchKernelEx(&config, decode_array<typename decltype(stored)::type>, geometry, messages, out);
  });
  return error;
}

cudaError_t decode_sum(const Geometry& geometry, const Messages& messages, bool fresh, DType dtype, const Bucket& out,
                       cudaStream_t stream) {
  const cudaLaunchConfig_t config = grid_of(geometry.tiles, stream);
  cudaError_t error = cudaSuccess;
  with_dtype(dtype, [&](auto stored) {
    error =
        cudaLaunchKernelEx(&config, decode_sum_array<typename decltype(stored)::type>, geometry, messages, fresh, out);
  });
  return error;
}

}  // namespace cuda
}  // namespace terngrad
