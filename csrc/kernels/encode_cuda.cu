// Pass 2: draw, ternarize, pack. Blocks go from the last tile to the first, since the last ones that pass 1 read are
// still in the second-level cache. Or both passes in one launch, whose blocks measure and encode in turns.
#include "measure.cuh"

namespace terngrad {
namespace cuda {

namespace {

TERNGRAD_DEVICE void zero_bytes(uint8_t* to, int64_t bytes) {
  const int64_t words = is_aligned(to, 4) ? bytes / 4 : 0;
  for (int64_t i = lane_of(); i < words; i += kWarp) store_word(to + 4 * i, 0);
  for (int64_t i = 4 * words + lane_of(); i < bytes; i += kWarp) to[i] = 0;
}

// A unit of a float32 payload. Four rows are loaded before the first is stored.
template <class Source>
TERNGRAD_DEVICE void carry_unit(const Source& source, const Unit& unit, uint8_t* payload) {
  for (int first = 4 * lane_of(); first < unit.count; first += kRowGroup) {
    if (first - 4 * lane_of() + kRowGroup <= unit.count) {
      float x[4][4];
#pragma unroll
      for (int i = 0; i < 4; ++i) source.carried_four(unit.begin + first + i * kColumns, x[i]);
#pragma unroll
      for (int i = 0; i < 4; ++i) store_floats(payload + 4 * (first + i * kColumns), x[i]);
      continue;
    }
    for (int i = 0; i < 4; ++i) {
      for (int j = 0; j < 4; ++j) {
        const int at = first + i * static_cast<int>(kColumns) + j;
        if (at < unit.count) store_word(payload + 4 * at, bits_of(source.carried_at(unit.begin + at)));
      }
    }
  }
}

template <class Source>
TERNGRAD_DEVICE void encode_unit(const Source& source, const Unit& unit, const Piece& piece, const Draw& draw,
                                 const Quantiser& quantiser, Packing packing, uint8_t* payload, int8_t* staging) {
  if (packing == Packing::float32) return carry_unit(source, unit, payload);
  if (!quantiser.live) return zero_bytes(payload, payload_bytes(packing, unit.count));
  const DrawnTrits<Source> trits(source, draw, quantiser, unit.begin, piece, unit.count);
  if (packing == Packing::base3) {
    pack_unit<Tiled<Packing::base3>>(trits, unit.count, payload, staging);
  } else {
    pack_unit<Tiled<Packing::two_bit>>(trits, unit.count, payload, staging);
  }
}

struct Staging {
  int8_t trits[kWarps][kMostTile];
};

template <class T>
TERNGRAD_DEVICE void encode_array_unit(const Unit& unit, const Piece& piece, const Bucket& x, Scale scale,
                                       const Draws& draws, uint8_t* message, Staging* staging) {
  if (unit.first && lane_of() == 0) store_word(message + piece.scale_at, bits_of(scale.scale));
  if (unit.count == 0) return;
  const auto source = ArraySource<T>::at(address_of(x, piece, sizeof(T)));
  encode_unit(source, unit, piece, draw_of(draws, piece), quantiser_of(scale), piece.packing,
              message + piece.payload_at + payload_bytes(piece.packing, unit.begin), staging->trits[warp_of()]);
}

template <class T>
__global__ __launch_bounds__(kThreads) void encode_array(const __grid_constant__ Geometry geometry,
                                                         const __grid_constant__ Bucket x,
                                                         const __grid_constant__ ScaleSource scales,
                                                         const __grid_constant__ Draws draws, uint8_t* message) {
  __shared__ Staging staging;
  zero_gaps(geometry, message);
  Unit unit;
  if (!has_unit(geometry, geometry.tiles - 1 - blockIdx.x, &unit)) return;
  const Piece& piece = geometry.pieces[unit.piece];
  encode_array_unit<T>(unit, piece, x, scale_for(scales, piece), draws, message, &staging);
}

// ---- both passes in one launch

// Waits until the group's scale is there. Whoever writes it has taken an item before this block took its own, so it
// runs or has run.
TERNGRAD_DEVICE void wait_for(const uint32_t* arrived) {
  if (lane_of() == 0) {
    while (*static_cast<const volatile uint32_t*>(arrived) != kAllArrived) __nanosleep(100);
    __threadfence();
  }
  __syncwarp();
}

template <class T>
TERNGRAD_DEVICE void encode_item(const Geometry& geometry, int64_t tile, const Bucket& x, const Sums& sums,
                                 const Draws& draws, uint8_t* message, Staging* staging) {
  Unit unit;
  if (!has_unit(geometry, tile, &unit)) return;
  const Piece& piece = geometry.pieces[unit.piece];
  const bool carries = piece.packing == Packing::float32;
  const bool measured = !carries && geometry.groups[piece.group].size > 0;
  if (measured) wait_for(sums.arrived + piece.group);
  const ScaleSource scales{nullptr, nullptr, sums.scales};
  const Scale scale = carries || measured ? scale_for(scales, piece) : scale_of_nothing();
  encode_array_unit<T>(unit, piece, x, scale, draws, message, staging);
}

template <class T>
TERNGRAD_DEVICE void measure_item(const Geometry& geometry, uint32_t item, const Bucket& x,
                                  const Measurement& measurement, Together* together) {
  const int64_t place = item & kItemPlace;
  const Again kept = item & kItemPasses ? Again::no : Again::yes;
  measure_tile<false, true>(
      geometry, measurement, place / kWarps, place % kWarps, [&](const Group& group, int64_t begin, int64_t end) {
        const auto source = ArraySource<T>::at(address_of(x, geometry.pieces[group.first_piece], sizeof(T)));
        return sum_together<false>(source, begin, end, 0.0f, together, kept);
      });
}

template <class T>
__global__ __launch_bounds__(kThreads, sizeof(T) == 8 ? 3 : 4) void measure_and_encode(
    const __grid_constant__ Geometry geometry, const __grid_constant__ Bucket x,
    const __grid_constant__ Measurement measurement, const __grid_constant__ Draws draws, uint8_t* message) {
  union Shared {
    Together together;
    Staging staging;
  };
  __shared__ Shared shared;
  __shared__ uint32_t taken;
  zero_gaps(geometry, message);
  const Sums& sums = measurement.sums;
  if (threadIdx.x == 0) taken = geometry.order[atomicAdd(sums.taken, 1u)];
  __syncthreads();
  const uint32_t item = taken;
  if (item & kItemEncodes) {
    encode_item<T>(geometry, item & kItemPlace, x, sums, draws, message, &shared.staging);
  } else {
    measure_item<T>(geometry, item, x, measurement, &shared.together);
  }
}

__global__ __launch_bounds__(kThreads, 2) void encode_messages(const __grid_constant__ Geometry geometry,
                                                               const __grid_constant__ Messages messages,
                                                               const __grid_constant__ ScaleSource scales,
                                                               const __grid_constant__ Draws draws,
                                                               const __grid_constant__ Geometry result,
                                                               uint8_t* message) {
  __shared__ Staging staging;
  zero_gaps(result, message);
  Unit unit;
  if (!has_unit(geometry, geometry.tiles - 1 - blockIdx.x, &unit)) return;
  const Piece& piece = geometry.pieces[unit.piece];
  const Piece& target = result.pieces[unit.piece];
  const SumSource source = SumSource::at(messages, unit.piece);
  const Scale scale = source.poisoned ? poisoned_scale() : scale_for(scales, piece);
  if (unit.first && lane_of() == 0) store_word(message + target.scale_at, bits_of(scale.scale));
  if (unit.count == 0) return;
  Draw draw = draw_of(draws, piece);
  draw.layer |= kSecondHop;
  encode_unit(source, unit, piece, draw, quantiser_of(scale), target.packing,
              message + target.payload_at + payload_bytes(target.packing, unit.begin), staging.trits[warp_of()]);
}

template <class T>
__global__ __launch_bounds__(kThreads) void ternarize_array(const __grid_constant__ Geometry geometry,
                                                            const __grid_constant__ Bucket x,
                                                            const __grid_constant__ ScaleSource scales,
                                                            const __grid_constant__ Draws draws,
                                                            const __grid_constant__ Bucket trits, float* scale_out) {
  Unit unit;
  if (!has_unit(geometry, geometry.tiles - 1 - blockIdx.x, &unit)) return;
  const Piece& piece = geometry.pieces[unit.piece];
  const Scale scale = scale_for(scales, piece);
  if (unit.first && lane_of() == 0) scale_out[piece.group] = scale.scale;
  if (unit.count == 0) return;
  const Quantiser quantiser = quantiser_of(scale);
  const Draw draw = draw_of(draws, piece);
  const auto source = ArraySource<T>::at(address_of(x, piece, sizeof(T)));
  const DrawnTrits<ArraySource<T>> rows(source, draw, quantiser, unit.begin, piece, unit.count);
  auto* to = address_of(trits, piece, 1) + unit.begin;
  const bool vectors = takes_vectors<int8_t>(to);
  for (int group = 0; group * kRowGroup < unit.count; ++group) {
    Trits found{};
    if (quantiser.live) found = (group + 1) * kRowGroup <= unit.count ? rows.whole(group, 4) : rows.some(group);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int element = group * kRowGroup + i * static_cast<int>(kColumns) + 4 * lane_of();
      if (element + 4 <= unit.count) {
        Four<int8_t> four;
#pragma unroll
        for (int j = 0; j < 4; ++j) four.values[j] = trit_in(found.t[i][j]);
        store_four<int8_t>(to, element, vectors, four);
      } else {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          if (element + j < unit.count) to[element + j] = static_cast<unsigned char>(trit_in(found.t[i][j]));
        }
      }
    }
  }
}

}  // namespace

cudaError_t encode(const Geometry& geometry, const Bucket& x, DType dtype, const ScaleSource& scales,
                   const Draws& draws, uint8_t* message, cudaStream_t stream) {
  const cudaLaunchConfig_t config = grid_of(geometry.tiles, stream);
  cudaError_t error = cudaSuccess;
  with_dtype(dtype, [&](auto stored) {
    error =
        cudaLaunchKernelEx(&config, encode_array<typename decltype(stored)::type>, geometry, x, scales, draws, message);
  });
  return error;
}

cudaError_t encode_at_once(const Geometry& geometry, const Bucket& x, DType dtype, const Measurement& measurement,
                           const Draws& draws, uint8_t* message, cudaStream_t stream) {
  const cudaLaunchConfig_t config = grid_of(geometry.items, stream);
  cudaError_t error = cudaSuccess;
  with_dtype(dtype, [&](auto stored) {
    error = cudaLaunchKernelEx(&config, measure_and_encode<typename decltype(stored)::type>, geometry, x, measurement,
                               draws, message);
  });
  return error;
}

cudaError_t encode_sum(const Geometry& geometry, const Messages& messages, const ScaleSource& scales,
                       const Draws& draws, const Geometry& result, uint8_t* message, cudaStream_t stream) {
  const cudaLaunchConfig_t config = grid_of(geometry.tiles, stream);
  return cudaLaunchKernelEx(&config, encode_messages, geometry, messages, scales, draws, result, message);
}

cudaError_t ternarize(const Geometry& geometry, const Bucket& x, DType dtype, const ScaleSource& scales,
                      const Draws& draws, const Bucket& trits, float* scale, cudaStream_t stream) {
  const cudaLaunchConfig_t config = grid_of(geometry.tiles, stream);
  cudaError_t error = cudaSuccess;
  with_dtype(dtype, [&](auto stored) {
    error = cudaLaunchKernelEx(&config, ternarize_array<typename decltype(stored)::type>, geometry, x, scales, draws,
                               trits, scale);
  });
  return error;
}

}  // namespace cuda
}  // namespace terngrad
