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
__global__ __launch_bounds__(kThreads) void sum_array(const __grid_constant__ Geometry geometry,
                                                      const __grid_constant__ Bucket x,
                                                      const __grid_constant__ StripeSums stripes) {
  __shared__ Together shared;
  const int64_t tile = blockIdx.x / kWarps;
  const int index = find(geometry.group_tiles, geometry.group_count, tile);
  const Group& group = geometry.groups[index];
  const int64_t stripe = (tile - geometry.group_tiles[index]) * kWarps + blockIdx.x % kWarps;
  if (stripe >= stripes_in(group) || is_carried(geometry, group)) return;
  const auto source = ArraySource<T>::at(address_of(x, geometry.pieces[group.first_piece], sizeof(T)));
  const StripeSum found = sum_together<Center>(source, stripe * kStripe, smaller_of((stripe + 1) * kStripe, group.size),
                                               Center ? source.one(0) : 0.0f, &shared);
  if (threadIdx.x == 0) store_sums<Center>(stripes, group.first_stripe + stripe, found);
}

// A warp has a group.
__global__ __launch_bounds__(kThreads) void fold_groups(const __grid_constant__ Geometry geometry,
                                                        const __grid_constant__ Sums sums) {
  const int64_t index = int64_t{blockIdx.x} * kWarps + warp_of();
  if (index >= geometry.group_count) return;
  const Group& group = geometry.groups[index];
  const Scale found = is_carried(geometry, group) ? carried_scale() : folded_scale(sums.stripes, group);
  if (lane_of() == 0) store_result(sums, index, found);
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
  const cudaLaunchConfig_t config = grid_of(geometry.measured_tiles, stream);
  Measurement told = measurement;
  told.first_kept = geometry.measured_tiles - geometry.kept_bytes / (kMeasured * size_of(dtype));
  cudaError_t error = cudaSuccess;
  with_dtype(dtype, [&](auto stored) {
    using T = typename decltype(stored)::type;
    const auto kernel = measurement.sums.stripes.center ? measure_array<T, true> : measure_array<T, false>;
    error = cudaLaunchKernelEx(&config, kernel, geometry, x, told);
  });
  return error;
}

cudaError_t sum_stripes(const Geometry& geometry, const Bucket& x, DType dtype, const StripeSums& stripes,
                        cudaStream_t stream) {
  const cudaLaunchConfig_t config = grid_of(geometry.measured_tiles * kWarps, stream);
  cudaError_t error = cudaSuccess;
  with_dtype(dtype, [&](auto stored) {
    using T = typename decltype(stored)::type;
    error =
        cudaLaunchKernelEx(&config, stripes.center ? sum_array<T, true> : sum_array<T, false>, geometry, x, stripes);
  });
  return error;
}

cudaError_t fold_stripes(const Geometry& geometry, const Sums& sums, cudaStream_t stream) {
  const cudaLaunchConfig_t config = grid_of((geometry.group_count + kWarps - 1) / kWarps, stream);
  return cudaLaunchKernelEx(&config, fold_groups, geometry, sums);
}

cudaError_t measure_sum(const Geometry& geometry, const Messages& messages, const Measurement& measurement,
                        cudaStream_t stream) {
  const cudaLaunchConfig_t config = grid_of(geometry.measured_tiles, stream);
  return cudaLaunchKernelEx(&config, measure_messages, geometry, messages, measurement);
}

}  // namespace cuda
}  // namespace terngrad
