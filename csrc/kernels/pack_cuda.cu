#include "device.cuh"

namespace terngrad {
namespace cuda {

namespace {

// The signs of four int8, as two_bit codes of the first row.
TERNGRAD_DEVICE uint32_t codes_of_signs(uint32_t values) {
  const uint32_t any = ((values & 0x7f7f7f7fu) + 0x7f7f7f7fu) | values;  // bit 7 of what is not 0
  return (any >> 7 & 0x01010101u) | (values >> 6 & 0x02020202u);
}

TERNGRAD_DEVICE Codes signs_of(const unsigned char* values, int count) {
  const bool vectors = is_aligned(values, 4);
  Codes codes = {};
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
    const int element = row * static_cast<int>(kColumns) + 4 * lane_of();
    uint32_t four = 0;
    if (vectors && element + 4 <= count) {
      four = __ldcs(reinterpret_cast<const uint32_t*>(values + element));
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (element + j < count) four |= static_cast<uint32_t>(values[element + j]) << (8 * j);
      }
    }
    codes.words[row / 4] |= codes_of_signs(four) << (2 * (row % 4));
  }
  return codes;
}

struct Range {
  int64_t begin;
  int count;
};

TERNGRAD_DEVICE Range range_of(int64_t n) {
  const int64_t begin = blockIdx.x * kTile + warp_of() * kUnit;
  const int64_t count = smaller_of(kUnit, n - begin);
  return Range{begin, count < 0 ? 0 : static_cast<int>(count)};
}

template <class Form>
__global__ __launch_bounds__(kThreads) void pack_array(const int8_t* values, int64_t n, uint8_t* payload) {
  __shared__ Staging staging[kWarps];
  const Range range = range_of(n);
  if (range.count == 0) return;
  const Codes codes = signs_of(reinterpret_cast<const unsigned char*>(values) + range.begin, range.count);
  pack_unit<Form>(codes, range.count, payload + payload_bytes(Form::packing, range.begin), &staging[warp_of()]);
}

template <class Form>
__global__ __launch_bounds__(kThreads) void unpack_array(const uint8_t* payload, int64_t n, int8_t* values) {
  const Range range = range_of(n);
  const uint8_t* from = payload + payload_bytes(Form::packing, range.begin);
  auto* to = reinterpret_cast<unsigned char*>(values) + range.begin;
  constexpr int kFormRows = static_cast<int>(Form::rows);
  const int full_tiles = range.count / static_cast<int>(Form::tile);
#pragma unroll
  for (int tile = 0; tile < kRows / kFormRows; ++tile) {
    if (tile >= full_tiles) break;
    uint32_t rows[kFormRows];
    rows_in_word(Form{}, load_word(from + tile * kColumns + 4 * lane_of()), rows);
#pragma unroll
    for (int i = 0; i < kFormRows; ++i) {
      store_word(to + (tile * kFormRows + i) * static_cast<int>(kColumns) + 4 * lane_of(), trits_of(rows[i]));
    }
  }
  for (int i = full_tiles * static_cast<int>(Form::tile) + lane_of(); i < range.count; i += kWarp) {
    to[i] = static_cast<unsigned char>(value_at(Form::packing, from, range.count, i));
  }
}

cudaLaunchConfig_t grid_for(int64_t n, cudaStream_t stream) { return grid_of((n + kTile - 1) / kTile, stream); }

}  // namespace

cudaError_t pack(const int8_t* trits, int64_t n, Packing packing, uint8_t* payload, cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  const cudaLaunchConfig_t config = grid_for(n, stream);
  cudaError_t error = cudaSuccess;
  with_ternary(packing,
               [&](auto form) { error = cudaLaunchKernelEx(&config, pack_array<decltype(form)>, trits, n, payload); });
  return error;
}

cudaError_t unpack(const uint8_t* payload, int64_t n, Packing packing, int8_t* trits, cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  const cudaLaunchConfig_t config = grid_for(n, stream);
  cudaError_t error = cudaSuccess;
  with_ternary(packing, [&](auto form) {
    error = cudaLaunchKernelEx(&config, unpack_array<decltype(form)>, payload, n, trits);
  });
  return error;
}

}  // namespace cuda
}  // namespace terngrad
