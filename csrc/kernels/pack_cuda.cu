#include "device.cuh"

namespace terngrad {
namespace cuda {

namespace {

// The sign of any int8 (contract/ternarize.h).
TERNGRAD_DEVICE uint32_t pattern_of(int8_t value) { return value < 0 ? 0xffffffffu : value > 0 ? 0x55555555u : 0u; }

// The signs of int8, by groups of four rows.
struct Signs {
  const unsigned char* values;
  bool vectors;
  int count;

  __device__ __forceinline__ Trits whole(int group, int rows) const {
    Trits trits{};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i >= rows) break;
      const int element = group * kRowGroup + i * static_cast<int>(kColumns) + 4 * lane_of();
      const Four<int8_t> four = load_four<int8_t>(values, element, vectors, Again::no);
#pragma unroll
      for (int j = 0; j < 4; ++j) trits.t[i][j] = pattern_of(four.values[j]);
    }
    return trits;
  }
  __device__ __forceinline__ Trits some(int group) const {
    Trits trits{};
    for (int i = 0; i < 4; ++i) {
      for (int j = 0; j < 4; ++j) {
        const int element = group * kRowGroup + i * static_cast<int>(kColumns) + 4 * lane_of() + j;
        if (element < count) trits.t[i][j] = pattern_of(static_cast<int8_t>(values[element]));
      }
    }
    return trits;
  }
};

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
  __shared__ int8_t staging[kWarps][kMostTile];
  const Range range = range_of(n);
  if (range.count == 0) return;
  const auto* from = reinterpret_cast<const unsigned char*>(values) + range.begin;
  const Signs signs{from, takes_vectors<int8_t>(from), range.count};
  pack_unit<Form>(signs, range.count, payload + payload_bytes(Form::packing, range.begin), staging[warp_of()]);
}

template <class Form>
__global__ __launch_bounds__(kThreads) void unpack_array(const uint8_t* payload, int64_t n, int8_t* values) {
  const Range range = range_of(n);
  const uint8_t* from = payload + payload_bytes(Form::packing, range.begin);
  auto* to = reinterpret_cast<unsigned char*>(values) + range.begin;
  const bool vectors = takes_vectors<int8_t>(to);
  constexpr int kFormRows = static_cast<int>(Form::rows);
  const int full_tiles = range.count / static_cast<int>(Form::tile);
#pragma unroll
  for (int tile = 0; tile < kRows / kFormRows; ++tile) {
    if (tile >= full_tiles) break;
    const uint32_t word = load_word(from + tile * kColumns + 4 * lane_of());
#pragma unroll
    for (int i = 0; i < kFormRows; ++i) {
      Four<int8_t> four;
#pragma unroll
      for (int j = 0; j < 4; ++j) four.values[j] = value_in(Form::packing, word >> (8 * j) & 255u, i);
      store_four<int8_t>(to, (tile * kFormRows + i) * static_cast<int>(kColumns) + 4 * lane_of(), vectors, four);
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
