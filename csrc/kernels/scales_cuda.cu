// Pass 1: every stripe's sums, by a warp each, or by a block each where there are few. What is read last is asked to
// stay in the second-level cache, all else not: pass 2 begins with it.
#include "measure.cuh"

namespace terngrad {
namespace cuda {

namespace {

template <class T, bool Center>
__global__ __launch_bounds__(kThreads) void measure_array(const __grid_constant__ Geometry geometry,
                                                          const __grid_constant__ Bucket x,
                                                          const __grid_constant__ Measurement measurement) {
  measure_tile<Center, false>(geometry, measurement, blockIdx.x, warp_of(),
                              [&](const Group& group, int64_t begin, int64_t end) {
                                const Piece& piece = geometry.pieces[group.first_piece];
                                const auto source = ArraySource<T>::at(address_of(x, piece, sizeof(T)));
                                return sum_stripe<Center>(source, begin, end, Center ? source.one(0) : 0.0f,
                                                          blockIdx.x >= measurement.first_kept);
                              });
}

template <class T, bool Center>
__global__ __launch_bounds__(kThreads) void measure_small(const __grid_constant__ Geometry geometry,
                                                          const __grid_constant__ Bucket x,
                                                          const __grid_constant__ Measurement measurement) {
  __shared__ Together shared;
  measure_tile<Center, true>(geometry, measurement, blockIdx.x / kWarps, blockIdx.x % kWarps,
                             [&](const Group& group, int64_t begin, int64_t end) {
                               const Piece& piece = geometry.pieces[group.first_piece];
                               const auto source = ArraySource<T>::at(address_of(x, piece, sizeof(T)));
                               return sum_together<Center>(source, begin, end, Center ? source.one(0) : 0.0f, &shared);
                             });
}

__global__ __launch_bounds__(kThreads, 2) void measure_messages(const __grid_constant__ Geometry geometry,
                                                                const __grid_constant__ Messages messages,
                                                                const __grid_constant__ Measurement measurement) {
  measure_tile<false, false>(geometry, measurement, blockIdx.x, warp_of(),
                             [&](const Group& group, int64_t begin, int64_t end) {
                               return sum_stripe(messages, geometry, group, begin, end);
                             });
}

}  // namespace

cudaError_t measure(const Geometry& geometry, const Bucket& x, DType dtype, const Measurement& measurement,
                    cudaStream_t stream) {
  const cudaLaunchConfig_t config = grid_of(geometry.measured_tiles * (measurement.by_block ? kWarps : 1), stream);
  Measurement told = measurement;
  told.first_kept = geometry.measured_tiles - geometry.kept_bytes / (kMeasured * size_of(dtype));
  cudaError_t error = cudaSuccess;
  with_dtype(dtype, [&](auto stored) {
    using T = typename decltype(stored)::type;
    const auto by_warp = measurement.center ? measure_array<T, true> : measure_array<T, false>;
    const auto by_block = measurement.center ? measure_small<T, true> : measure_small<T, false>;
    error = cudaLaunchKernelEx(&config, measurement.by_block ? by_block : by_warp, geometry, x, told);
  });
  return error;
}

cudaError_t measure_sum(const Geometry& geometry, const Messages& messages, const Measurement& measurement,
                        cudaStream_t stream) {
  const cudaLaunchConfig_t config = grid_of(geometry.measured_tiles, stream);
  return cudaLaunchKernelEx(&config, measure_messages, geometry, messages, measurement);
}

}  // namespace cuda
}  // namespace terngrad
