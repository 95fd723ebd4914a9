// Sums of trits and counts, 16 bits each, two to a register: taken modulo 2^16 on the way, as the contract's counts
// are.
#include "device.cuh"

namespace terngrad {
namespace cuda {

namespace {

// Four columns of a row.
struct Pairs {
  uint32_t low;   // columns 0 and 1
  uint32_t high;  // columns 2 and 3
};

TERNGRAD_DEVICE uint32_t add_pairs(uint32_t a, uint32_t b) {
  return ((a & 0x7fff7fffu) + (b & 0x7fff7fffu)) ^ ((a ^ b) & 0x80008000u);
}

TERNGRAD_DEVICE uint32_t pair_of(int first, int second) {
  return (static_cast<uint32_t>(first) & 0xffffu) | static_cast<uint32_t>(second) << 16;
}

template <class Form>
TERNGRAD_DEVICE void add_tiles(const uint8_t* payload, int rows, Pairs (&sums)[kRows]) {
  constexpr int kFormRows = static_cast<int>(Form::rows);
#pragma unroll
  for (int tile = 0; tile < kRows / kFormRows; ++tile) {
    if (tile * kFormRows >= rows) break;
    const uint32_t word = load_word(payload + tile * kColumns + 4 * lane_of());
#pragma unroll
    for (int i = 0; i < kFormRows; ++i) {
      int t[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) t[j] = value_in(Form::packing, word >> (8 * j) & 255u, i);
      Pairs& sum = sums[tile * kFormRows + i];
      sum.low = add_pairs(sum.low, pair_of(t[0], t[1]));
      sum.high = add_pairs(sum.high, pair_of(t[2], t[3]));
    }
  }
}

// Rows [0, rows), which are whole tiles of the packing but for base3's, whose last rows then are not looked at.
TERNGRAD_DEVICE void add_message(const uint8_t* payload, Packing packing, int rows, Pairs (&sums)[kRows]) {
  switch (packing) {
    case Packing::two_bit: return add_tiles<Tiled<Packing::two_bit>>(payload, rows, sums);
    case Packing::base3: return add_tiles<Tiled<Packing::base3>>(payload, rows, sums);
    case Packing::counts4: return add_tiles<Tiled<Packing::counts4>>(payload, rows, sums);
    case Packing::counts8: return add_tiles<Tiled<Packing::counts8>>(payload, rows, sums);
    default: break;  // counts16
  }
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
    if (row >= rows) break;
    const uint8_t* at = payload + 2 * (row * static_cast<int>(kColumns) + 4 * lane_of());
    sums[row].low = add_pairs(sums[row].low, load_word(at));
    sums[row].high = add_pairs(sums[row].high, load_word(at + 4));
  }
}

TERNGRAD_DEVICE uint32_t code_in(Packing packing, uint32_t sum, int row) {
  return code_of(packing, static_cast<int16_t>(sum), row);
}

template <class Form>
TERNGRAD_DEVICE void store_tiles(const Pairs (&sums)[kRows], int rows, uint8_t* payload) {
  constexpr int kFormRows = static_cast<int>(Form::rows);
#pragma unroll
  for (int tile = 0; tile < kRows / kFormRows; ++tile) {
    if (tile * kFormRows >= rows) break;
    uint32_t word = 0;
#pragma unroll
    for (int i = 0; i < kFormRows; ++i) {
      const Pairs& sum = sums[tile * kFormRows + i];
      word |= code_in(Form::packing, sum.low, i) | code_in(Form::packing, sum.low >> 16, i) << 8 |
              code_in(Form::packing, sum.high, i) << 16 | code_in(Form::packing, sum.high >> 16, i) << 24;
    }
    store_word(payload + tile * kColumns + 4 * lane_of(), word);
  }
}

TERNGRAD_DEVICE void store_sums(const Pairs (&sums)[kRows], Packing packing, int rows, uint8_t* payload) {
  if (packing == Packing::counts4) return store_tiles<Tiled<Packing::counts4>>(sums, rows, payload);
  if (packing == Packing::counts8) return store_tiles<Tiled<Packing::counts8>>(sums, rows, payload);
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
    if (row >= rows) break;
    uint8_t* to = payload + 2 * (row * static_cast<int>(kColumns) + 4 * lane_of());
    store_word(to, sums[row].low);
    store_word(to + 4, sums[row].high);
  }
}

TERNGRAD_DEVICE int sum_at(const Messages& messages, const Unit& unit, int element) {
  int sum = 0;
  for (int64_t i = 0; i < messages.count; ++i) {
    const Message message = message_at(messages, i);
    const Piece& own = message.pieces[unit.piece];
    sum += value_at(own.packing, payload_of(message, own, unit.index), unit.count, element);
  }
  return static_cast<int16_t>(sum);
}

// The rest of a unit, a byte of the result a lane; `from` begins a tile.
TERNGRAD_DEVICE void sum_rest(const Messages& messages, const Unit& unit, Packing packing, int from, uint8_t* payload) {
  if (packing == Packing::counts16) {
    for (int i = from + lane_of(); i < unit.count; i += kWarp) {
      const auto sum = static_cast<uint32_t>(sum_at(messages, unit, i));
      payload[2 * i] = static_cast<uint8_t>(sum);
      payload[2 * i + 1] = static_cast<uint8_t>(sum >> 8);
    }
    return;
  }
  const int rows = static_cast<int>(rows_of(packing));
  const int tile = static_cast<int>(tile_of(packing));
  for (int start = from; start < unit.count; start += tile) {
    const int inside = static_cast<int>(smaller_of(tile, unit.count - start));
    const int columns = static_cast<int>(payload_bytes(packing, inside));
    for (int column = lane_of(); column < columns; column += kWarp) {
      uint32_t byte = 0;
      for (int row = 0; row < rows; ++row) {
        const int element = row * columns + column;
        if (element < inside) byte |= code_of(packing, sum_at(messages, unit, start + element), row);
      }
      payload[start / rows + column] = static_cast<uint8_t>(byte);
    }
  }
}

// What all messages agree on; +infinity where they do not or it is not finite.
TERNGRAD_DEVICE float common_scale(const Messages& messages, int64_t piece) {
  const Message first = message_at(messages, 0);
  const float common = load_scale(first.data + first.pieces[piece].scale_at);
  bool differs = is_poisoned(common);
  for (int64_t i = lane_of(); i < messages.count; i += kWarp) {
    const Message message = message_at(messages, i);
    if (bits_of(load_scale(message.data + message.pieces[piece].scale_at)) != bits_of(common)) differs = true;
  }
  if (__any_sync(kAllLanes, differs)) return float_of(kInfinity32);
  return common == 0.0f ? 0.0f : common;
}

TERNGRAD_DEVICE void sum_carried(const Messages& messages, const Unit& unit, uint8_t* payload) {
  for (int i = lane_of(); i < unit.count; i += kWarp) {
    float sum = 0.0f;
    for (int64_t m = 0; m < messages.count; ++m) {
      const Message message = message_at(messages, m);
      const Piece& own = message.pieces[unit.piece];
      sum = sum + float_of(load_word(payload_of(message, own, unit.index) + 4 * i));
    }
    store_word(payload + 4 * i, bits_of(sum));
  }
}

__global__ __launch_bounds__(kThreads) void sum_messages(const __grid_constant__ Geometry geometry,
                                                         const __grid_constant__ Messages messages, uint8_t* data) {
  zero_gaps(geometry, data);
  Unit unit;
  if (!has_unit(geometry, blockIdx.x, &unit)) return;
  const Piece& piece = geometry.pieces[unit.piece];
  const bool carries = piece.packing == Packing::float32;
  const float scale = carries ? 1.0f : common_scale(messages, unit.piece);
  if (unit.first && lane_of() == 0) store_word(data + piece.scale_at, bits_of(scale));
  if (unit.count == 0) return;
  uint8_t* payload = data + payload_at(piece, unit.index);
  if (carries) return sum_carried(messages, unit, payload);
  if (scale == 0.0f || is_poisoned(scale)) {
    const int64_t bytes = payload_bytes(piece.packing, unit.count);
    for (int64_t i = lane_of(); i < bytes; i += kWarp) payload[i] = 0;
    return;
  }
  // Rows that lie in whole tiles of every message, and make whole tiles of the result.
  int rows = full_rows_of(piece.packing, unit.count);
  for (int64_t i = 0; i < messages.count; ++i) {
    const int own = full_rows_of(message_at(messages, i).pieces[unit.piece].packing, unit.count);
    rows = own < rows ? own : rows;
  }
  rows = rows / rows_in(piece.packing) * rows_in(piece.packing);
  Pairs sums[kRows] = {};
  for (int64_t i = 0; i < messages.count; ++i) {
    const Message message = message_at(messages, i);
    const Piece& own = message.pieces[unit.piece];
    add_message(payload_of(message, own, unit.index), own.packing, rows, sums);
  }
  store_sums(sums, piece.packing, rows, payload);
  sum_rest(messages, unit, piece.packing, rows * static_cast<int>(kColumns), payload);
}

}  // namespace

cudaError_t sum_trits(const Geometry& geometry, const Messages& messages, uint8_t* message, cudaStream_t stream) {
  const cudaLaunchConfig_t config = grid_of(geometry.tiles, stream);
  return cudaLaunchKernelEx(&config, sum_messages, geometry, messages, message);
}

}  // namespace cuda
}  // namespace terngrad
