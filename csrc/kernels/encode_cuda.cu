// Pass 2: draw, ternarize, pack. Blocks go from the last tile to the first, since the last ones that pass 1 read are
// still in the second-level cache. Or both passes in one launch, whose blocks measure and encode in turns.
#include "measure.cuh"

namespace terngrad {
namespace cuda {

namespace {

TERNGRAD_DEVICE void zero_bytes(uint8_t* to, int64_t bytes) {
  for (int64_t i = lane_of(); i < bytes; i += kWarp) to[i] = 0;
}

template <class Source>
TERNGRAD_DEVICE void encode_unit(const Source& source, const Unit& unit, const Piece& piece, const Draw& draw,
                                 const Quantiser& quantiser, Packing packing, uint8_t* payload, int8_t* staging) {
  if (packing == Packing::float32) {
    for (int i = lane_of(); i < unit.count; i += kWarp) {
      store_word(payload + 4 * i, bits_of(source.carried_at(unit.begin + i)));
    }
    return;
  }
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
TERNGRAD_DEVICE void encode_tile(const Unit& unit, const Piece& piece, const Bucket& x, Scale scale, const Draws& draws,
                                 uint8_t* message, Staging* staging) {
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
  const Unit unit = unit_of(geometry, geometry.tiles - 1 - blockIdx.x);
  const Piece& piece = geometry.pieces[unit.piece];
  zero_gaps(geometry, message);
  encode_tile<T>(unit, piece, x, scale_for(scales, piece), draws, message, &staging);
}

// ---- both passes in one launch

// Waits until the group's scale is there. Whoever writes it has taken an item before this block took its own, so it
// runs.
TERNGRAD_DEVICE void wait_for(const uint32_t* arrived) {
  if (threadIdx.x == 0) {
    while (*static_cast<const volatile uint32_t*>(arrived) != kAllArrived) __nanosleep(100);
    __threadfence();
  }
  __syncthreads();
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
  const Sums& sums = measurement.sums;
  if (threadIdx.x == 0) taken = geometry.order[atomicAdd(sums.taken, 1u)];
  __syncthreads();
  const uint32_t item = taken;
  const int64_t place = item & kItemPlace;
  zero_gaps(geometry, message);
  if (item & kItemEncodes) {
    const Unit unit = unit_of(geometry, place);
    const Piece& piece = geometry.pieces[unit.piece];
    const bool carries = piece.packing == Packing::float32;
    const bool measured = !carries && geometry.groups[piece.group].size > 0;
    if (measured) wait_for(sums.arrived + piece.group);
    const ScaleSource scales{nullptr, nullptr, sums.scales};
    const Scale scale = carries || measured ? scale_for(scales, piece) : scale_of_nothing();
    return encode_tile<T>(unit, piece, x, scale, draws, message, &shared.staging);
  }
  const Again kept = item & kItemPasses ? Again::no : Again::yes;
  measure_tile<false, true>(
      geometry, measurement, place / kWarps, place % kWarps, [&](const Group& group, int64_t begin, int64_t end) {
        const auto source = ArraySource<T>::at(address_of(x, geometry.pieces[group.first_piece], sizeof(T)));
        return sum_together<false>(source, begin, end, 0.0f, &shared.together, kept);
      });
}

__global__ __launch_bounds__(kThreads) void encode_messages(const __grid_constant__ Geometry geometry,
                                                            const __grid_constant__ Messages messages,
                                                            const __grid_constant__ ScaleSource scales,
                                                            const __grid_constant__ Draws draws,
                                                            const __grid_constant__ Geometry result, uint8_t* message) {
  __shared__ Staging staging;
  const Unit unit = unit_of(geometry, geometry.tiles - 1 - blockIdx.x);
  const Piece& piece = geometry.pieces[unit.piece];
  const Piece& target = result.pieces[unit.piece];
  const SumSource source = SumSource::at(messages, unit.piece);
  const Scale scale = source.poisoned ? poisoned_scale() : scale_for(scales, piece);
  zero_gaps(result, message);
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
  const Unit unit = unit_of(geometry, geometry.tiles - 1 - blockIdx.x);
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
        store_four<int8_t>(to, element, vectors,
                           Four<int8_t>{{found.t[i][0], found.t[i][1], found.t[i][2], found.t[i][3]}});
      } else {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          if (element + j < unit.count) to[element + j] = static_cast<unsigned char>(found.t[i][j]);
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
