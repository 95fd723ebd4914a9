#include "device.cuh"

namespace terngrad {
namespace cuda {

namespace {

// Beyond the limit: +-limit; all else, NaN included, as it is.
template <class T>
TERNGRAD_DEVICE T clipped(T value, float limit) {
  const float wide = widen(value);
  if (!(limit > 0.0f)) return narrowed<T>(float_of(kNaN32));
  const bool beyond = float_of(magnitude_bits(wide)) > limit;
  return beyond ? narrowed<T>(bits_of(wide) >> 31 ? -limit : limit) : value;
}

template <class T>
__global__ __launch_bounds__(kThreads, 4) void clip_array(const __grid_constant__ Geometry geometry,
                                                          const __grid_constant__ Bucket x,
                                                          const __grid_constant__ ScaleSource scales,
                                                          const __grid_constant__ Bucket out) {
  Unit unit;
  if (!has_unit(geometry, geometry.tiles - 1 - blockIdx.x, &unit) || unit.count == 0) return;
  const Piece& piece = geometry.pieces[unit.piece];
  const float limit = scales.limit ? scales.limit[piece.group] : scale_for(scales, piece).limit;
  const auto bytes = static_cast<int64_t>(sizeof(T));
  const unsigned char* from = address_of(x, piece, bytes) + unit.begin * bytes;
  unsigned char* to = address_of(out, piece, bytes) + unit.begin * bytes;
  const bool from_vectors = takes_vectors<T>(from);
  const bool to_vectors = takes_vectors<T>(to);
#pragma unroll 4
  for (int row = 0; row < kRows; ++row) {
    const int element = row * static_cast<int>(kColumns) + 4 * lane_of();
    if (element + 4 <= unit.count) {
      Four<T> four = load_four<T>(from, element, from_vectors, Again::no);
#pragma unroll
      for (int j = 0; j < 4; ++j) four.values[j] = clipped(four.values[j], limit);
      store_four<T>(to, element, to_vectors, four);
    } else {
      for (int at = element; at < unit.count; ++at) {
        reinterpret_cast<T*>(to)[at] = clipped(reinterpret_cast<const T*>(from)[at], limit);
      }
    }
  }
}

}  // namespace

cudaError_t clip(const Geometry& geometry, const Bucket& x, DType dtype, const ScaleSource& scales, const Bucket& out,
                 cudaStream_t stream) {
  const cudaLaunchConfig_t config = grid_of(geometry.tiles, stream);
  cudaError_t error = cudaSuccess;
  with_dtype(dtype, [&](auto stored) {
    error = cudaLaunchKernelEx(&config, clip_array<typename decltype(stored)::type>, geometry, x, scales, out);
  });
  return error;
}

}  // namespace cuda
}  // namespace terngrad
