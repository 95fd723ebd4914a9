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

template <ScaleOrigin O, class Source>
TERNGRAD_DEVICE void encode_unit(const Source& source, const typename Source::Rows& ahead, const Unit& unit,
                                 const Piece& piece, const Draw& draw, Scale scale, Packing packing, uint8_t* payload,
                                 Staging* staging) {
  const Quantiser quantiser = quantiser_of(scale);
  if (!quantiser.live) return zero_bytes(payload, payload_bytes(packing, unit.count));
  const Codes codes = draw_unit<O>(source, ahead, unit, piece, draw, quantiser);
  if (packing == Packing::base3) {
    pack_unit<Tiled<Packing::base3>>(codes, unit.count, payload, staging);
  } else {
    pack_unit<Tiled<Packing::two_bit>>(codes, unit.count, payload, staging);
  }
}

// `scale_of_piece()` is asked for when the first rows are under way.
template <ScaleOrigin O, class T, class F>
TERNGRAD_DEVICE void encode_array_unit(const Unit& unit, const Piece& piece, const Bucket& x, const Draws& draws,
                                       uint8_t* message, Staging* staging, const F& scale_of_piece) {
  const auto source = ArraySource<T>::at(address_of(x, piece, sizeof(T)));
  uint8_t* payload = message + payload_at(piece, unit.index);
  const bool writes_scale = unit.first && lane_of() == 0;
  if (piece.packing == Packing::float32) {
    if (writes_scale) store_word(message + piece.scale_at, bits_of(carried_scale().scale));
    return carry_unit(source, unit, payload);
  }
  const auto ahead = first_rows(source, unit);
  const Scale scale = scale_of_piece();
  if (writes_scale) store_word(message + piece.scale_at, bits_of(scale.scale));
  if (unit.count == 0) return;
  encode_unit<O>(source, ahead, unit, piece, draw_of(draws, piece), scale, piece.packing, payload, staging);
}

template <class T, ScaleOrigin O>
__global__ __launch_bounds__(kThreads) void encode_array(const __grid_constant__ Geometry geometry,
                                                         const __grid_constant__ Bucket x,
                                                         const __grid_constant__ ScaleSource scales,
                                                         const __grid_constant__ Draws draws, uint8_t* message) {
  __shared__ Staging staging[kWarps];
  zero_gaps(geometry, message);
  Unit unit;
  if (!has_unit(geometry, geometry.tiles - 1 - blockIdx.x, &unit)) return;
  const Piece& piece = geometry.pieces[unit.piece];
  encode_array_unit<O, T>(unit, piece, x, draws, message, &staging[warp_of()],
                          [&] { return scale_for(scales, piece); });
}

template <class T>
__global__ __launch_bounds__(kThreads) void encode_few(const __grid_constant__ Geometry geometry,
                                                       const __grid_constant__ Bucket x,
                                                       const __grid_constant__ StripeSums stripes,
                                                       const __grid_constant__ Draws draws, uint8_t* message) {
  __shared__ Staging staging[kWarps];
  zero_gaps(geometry, message);
  Unit unit;
  if (!has_unit(geometry, blockIdx.x, &unit)) return;
  const Piece& piece = geometry.pieces[unit.piece];
  encode_array_unit<ScaleOrigin::measured, T>(unit, piece, x, draws, message, &staging[warp_of()],
                                              [&] { return folded_scale(stripes, geometry.groups[piece.group]); });
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
  encode_array_unit<ScaleOrigin::measured, T>(unit, piece, x, draws, message, staging, [&] {
    if (geometry.groups[piece.group].size == 0) return scale_of_nothing();
    wait_for(sums.arrived + piece.group);
    return scale_for(ScaleSource{nullptr, nullptr, sums.scales}, piece);
  });
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
__global__ __launch_bounds__(kThreads, kBlocksAtOnce) void measure_and_encode(
    const __grid_constant__ Geometry geometry, const __grid_constant__ Bucket x,
    const __grid_constant__ Measurement measurement, const __grid_constant__ Draws draws, uint8_t* message) {
  union Shared {
    Together together;
    Staging staging[kWarps];
  };
  __shared__ Shared shared;
  __shared__ uint32_t taken;
  zero_gaps(geometry, message);
  const Sums& sums = measurement.sums;
  if (threadIdx.x == 0) taken = geometry.order[atomicAdd(sums.taken, 1u)];
  __syncthreads();
  const uint32_t item = taken;
  if (item & kItemEncodes) {
    encode_item<T>(geometry, item & kItemPlace, x, sums, draws, message, &shared.staging[warp_of()]);
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
  __shared__ Staging staging[kWarps];
  zero_gaps(result, message);
  Unit unit;
  if (!has_unit(geometry, geometry.tiles - 1 - blockIdx.x, &unit)) return;
  const Piece& piece = geometry.pieces[unit.piece];
  const Piece& target = result.pieces[unit.piece];
  const SumSource source = SumSource::at(messages, unit.piece);
  const Scale scale = source.poisoned ? poisoned_scale() : scale_for(scales, piece);
  if (unit.first && lane_of() == 0) store_word(message + target.scale_at, bits_of(scale.scale));
  if (unit.count == 0) return;
  uint8_t* payload = message + payload_at(target, unit.index);
  if (target.packing == Packing::float32) return carry_unit(source, unit, payload);
  Draw draw = draw_of(draws, piece);
  draw.layer |= kSecondHop;
  encode_unit<ScaleOrigin::passed>(source, first_rows(source, unit), unit, piece, draw, scale, target.packing, payload,
                                   &staging[warp_of()]);
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
  const bool begins_group = unit.first && unit.piece == geometry.groups[piece.group].first_piece;
  if (begins_group && lane_of() == 0) scale_out[piece.group] = scale.scale;
  if (unit.count == 0) return;
  const Quantiser quantiser = quantiser_of(scale);
  const auto source = ArraySource<T>::at(address_of(x, piece, sizeof(T)));
  Codes codes = {};
  if (quantiser.live) {
    const Draw draw = draw_of(draws, piece);
    codes = draw_unit<ScaleOrigin::passed>(source, first_rows(source, unit), unit, piece, draw, quantiser);
  }
  auto* to = address_of(trits, piece, 1) + unit.begin;
  const bool vectors = takes_vectors<int8_t>(to);
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
    const int element = row * static_cast<int>(kColumns) + 4 * lane_of();
    const uint32_t four = trits_of(codes.words[row / 4] >> (2 * (row % 4)));
    if (vectors && element + 4 <= unit.count) {
      __stcs(reinterpret_cast<uint32_t*>(to + element), four);
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (element + j < unit.count) to[element + j] = static_cast<unsigned char>(four >> (8 * j));
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
    using T = typename decltype(stored)::type;
    const auto kernel = scales.scale ? encode_array<T, ScaleOrigin::passed> : encode_array<T, ScaleOrigin::measured>;
    error = cudaLaunchKernelEx(&config, kernel, geometry, x, scales, draws, message);
  });
  return error;
}

cudaError_t encode_small(const Geometry& geometry, const Bucket& x, DType dtype, const StripeSums& stripes,
                         const Draws& draws, uint8_t* message, cudaStream_t stream) {
  const cudaLaunchConfig_t config = grid_of(geometry.tiles, stream);
  cudaError_t error = cudaSuccess;
  with_dtype(dtype, [&](auto stored) {
    error =
        cudaLaunchKernelEx(&config, encode_few<typename decltype(stored)::type>, geometry, x, stripes, draws, message);
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
