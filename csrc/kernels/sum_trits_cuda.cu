// Sums of trits and counts. Those of trits and of 4-bit counts are a byte each, four columns to a register, until they
// might not fit; then, and all others, 16 bits each, two to a register: taken modulo 2^16 on the way, as the contract's
// counts are.
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

// A row's sums are 128 too large, so that no byte lends from the next: as long as each is within +-127 of that.
constexpr uint32_t kBias = 0x80808080u;
constexpr int kMostInByte = 127;

struct Sums16 {
  Pairs rows[kRows];
};
struct Sums8 {
  uint32_t rows[kRows];
};

// The most that one message adds to a byte, or nothing where it goes to the pairs. (An invalid count may be -8.)
TERNGRAD_DEVICE int most_in_byte(Packing packing) {
  return is_ternary(packing) ? 1 : packing == Packing::counts4 ? 8 : 0;
}

template <class Form>
TERNGRAD_DEVICE void add_tiles(Form form, const uint8_t* payload, int rows, Sums8* sums) {
  constexpr int kFormRows = static_cast<int>(Form::rows);
#pragma unroll
  for (int tile = 0; tile < kRows / kFormRows; ++tile) {
    if (tile * kFormRows >= rows) break;
    uint32_t codes[kFormRows];
    rows_in_word(form, load_word(payload + tile * kColumns + 4 * lane_of()), codes);
#pragma unroll
    for (int i = 0; i < kFormRows; ++i) {
      sums->rows[tile * kFormRows + i] += (codes[i] & 0x01010101u) - (codes[i] & 0x02020202u);
    }
  }
}

TERNGRAD_DEVICE void add_tiles(Tiled<Packing::counts4>, const uint8_t* payload, int rows, Sums8* sums) {
#pragma unroll
  for (int row = 0; row < kRows; row += 2) {
    if (row >= rows) break;
    const uint32_t word = load_word(payload + row / 2 * kColumns + 4 * lane_of());
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      sums->rows[row + i] += ((word >> (4 * i) & 0x0f0f0f0fu) ^ 0x08080808u) - 0x08080808u;
    }
  }
}

TERNGRAD_DEVICE void add_signed_bytes(uint32_t bytes, Pairs* sum) {
  int t[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) t[j] = static_cast<int8_t>(bytes >> (8 * j));
  sum->low = add_pairs(sum->low, pair_of(t[0], t[1]));
  sum->high = add_pairs(sum->high, pair_of(t[2], t[3]));
}

TERNGRAD_DEVICE void start(Sums8* sums) {
#pragma unroll
  for (int row = 0; row < kRows; ++row) sums->rows[row] = kBias;
}

TERNGRAD_DEVICE void move_bytes(Sums8* from, Sums16* to) {
#pragma unroll
  for (int row = 0; row < kRows; ++row) add_signed_bytes(from->rows[row] ^ kBias, &to->rows[row]);
  start(from);
}

// Rows [0, rows), which are whole tiles of the packing but for base3's, whose last rows then are not looked at.
TERNGRAD_DEVICE void add_message(const uint8_t* payload, Packing packing, int rows, Sums8* bytes, Sums16* pairs) {
  switch (packing) {
    case Packing::two_bit: return add_tiles(Tiled<Packing::two_bit>{}, payload, rows, bytes);
    case Packing::base3: return add_tiles(Tiled<Packing::base3>{}, payload, rows, bytes);
    case Packing::counts4: return add_tiles(Tiled<Packing::counts4>{}, payload, rows, bytes);
    default: break;  // counts8, counts16
  }
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
    if (row >= rows) break;
    const int element = row * static_cast<int>(kColumns) + 4 * lane_of();
    Pairs& sum = pairs->rows[row];
    if (packing == Packing::counts8) {
      add_signed_bytes(load_word(payload + element), &sum);
    } else {
      sum.low = add_pairs(sum.low, load_word(payload + 2 * element));
      sum.high = add_pairs(sum.high, load_word(payload + 2 * element + 4));
    }
  }
}

TERNGRAD_DEVICE uint32_t code_in(Packing packing, uint32_t sum, int row) {
  return code_of(packing, static_cast<int16_t>(sum), row);
}

template <class Form>
TERNGRAD_DEVICE void store_tiles(const Sums16& sums, int rows, uint8_t* payload) {
  constexpr int kFormRows = static_cast<int>(Form::rows);
#pragma unroll
  for (int tile = 0; tile < kRows / kFormRows; ++tile) {
    if (tile * kFormRows >= rows) break;
    uint32_t word = 0;
#pragma unroll
    for (int i = 0; i < kFormRows; ++i) {
      const Pairs& sum = sums.rows[tile * kFormRows + i];
      word |= code_in(Form::packing, sum.low, i) | code_in(Form::packing, sum.low >> 16, i) << 8 |
              code_in(Form::packing, sum.high, i) << 16 | code_in(Form::packing, sum.high >> 16, i) << 24;
    }
    store_word(payload + tile * kColumns + 4 * lane_of(), word);
  }
}

TERNGRAD_DEVICE void store_sums(const Sums16& sums, Packing packing, int rows, uint8_t* payload) {
  if (packing == Packing::counts4) return store_tiles<Tiled<Packing::counts4>>(sums, rows, payload);
  if (packing == Packing::counts8) return store_tiles<Tiled<Packing::counts8>>(sums, rows, payload);
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
    if (row >= rows) break;
    uint8_t* to = payload + 2 * (row * static_cast<int>(kColumns) + 4 * lane_of());
    store_word(to, sums.rows[row].low);
    store_word(to + 4, sums.rows[row].high);
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
  Sums16 sums = {};
  Sums8 bytes;
  start(&bytes);
  int room = kMostInByte;
  for (int64_t i = 0; i < messages.count; ++i) {
    const Message message = message_at(messages, i);
    const Piece& own = message.pieces[unit.piece];
    room -= most_in_byte(own.packing);
    if (room < 0) {
      move_bytes(&bytes, &sums);
      room = kMostInByte - most_in_byte(own.packing);
    }
    add_message(payload_of(message, own, unit.index), own.packing, rows, &bytes, &sums);
  }
  move_bytes(&bytes, &sums);
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
