// Whether a message is canonical, and the copies that travel inside launches.
#include "device.cuh"

namespace terngrad {
namespace cuda {

namespace {

TERNGRAD_DEVICE bool any_byte(const uint8_t* bytes, int64_t count) {
  bool any = false;
  for (int64_t i = lane_of(); i < count; i += kWarp) any |= bytes[i] != 0;
  return any;
}

TERNGRAD_DEVICE bool is_unsound(const uint8_t* payload, Packing packing, int count, int64_t workers) {
  bool unsound = false;
  const int64_t bytes = payload_bytes(packing, count);
  for (int64_t i = lane_of(); i < bytes; i += kWarp) {
    if (is_counts(packing)) {
      unsound |= !is_count_within(packing, payload, i, workers);
    } else {
      unsound |= !is_canonical(packing, payload[i]);
    }
  }
  if (packing == Packing::counts16) return unsound;
  const auto rest = static_cast<int>(count % tile_of(packing));
  const auto columns = static_cast<int>(payload_bytes(packing, rest));
  const int slots = columns * static_cast<int>(rows_of(packing));
  for (int slot = rest + lane_of(); slot < slots; slot += kWarp) {
    unsound |= value_in(packing, payload[bytes - columns + slot % columns], slot / columns) != 0;
  }
  return unsound;
}

TERNGRAD_DEVICE bool is_unsound(const Geometry& geometry, const uint8_t* message, int64_t workers) {
  Unit unit;
  if (!has_unit(geometry, blockIdx.x, &unit)) return false;
  const Piece& piece = geometry.pieces[unit.piece];
  const float scale = load_scale(message + piece.scale_at);
  if (piece.packing == Packing::float32) return bits_of(scale) != bits_of(1.0f);
  const uint8_t* payload = message + payload_at(piece, unit.index);
  if (is_finite(scale) && scale >= kSmallestScale) return is_unsound(payload, piece.packing, unit.count, workers);
  const bool known = bits_of(scale) == 0 || bits_of(scale) == kInfinity32;
  return !known || any_byte(payload, payload_bytes(piece.packing, unit.count));
}

__global__ __launch_bounds__(kThreads) void validate_message(const __grid_constant__ Geometry geometry,
                                                             const uint8_t* message, int64_t workers, uint32_t* found) {
  bool unsound = is_unsound(geometry, message, workers);
  for (int64_t i = blockIdx.x; i < geometry.gap_count; i += gridDim.x) {
    const Gap gap = geometry.gaps[i];
    for (int64_t at = gap.begin + threadIdx.x; at < gap.end; at += kThreads) unsound |= message[at] != 0;
  }
  if (unsound) atomicExch(found, 1u);
}

// A word has 16 bytes.
template <int Words>
struct Chunk {
  uint4 words[Words];
};

template <int Words>
__global__ __launch_bounds__(kThreads) void write_chunk(const __grid_constant__ Chunk<Words> chunk, int words,
                                                        uint4* to) {
  const int i = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (i < words) to[i] = chunk.words[i];
}

// What every launch can carry, and what one can from compute capability 7.0 on.
constexpr int kSmallChunk = 3968 / 16;
constexpr int kLargeChunk = 32000 / 16;

template <int Words>
cudaError_t launch_chunk(const unsigned char* from, int64_t bytes, uint4* to, cudaStream_t stream) {
  Chunk<Words> chunk;
  memcpy(chunk.words, from, static_cast<size_t>(bytes));
  const auto words = static_cast<int>((bytes + 15) / 16);
  const cudaLaunchConfig_t config = grid_of((words + kThreads - 1) / kThreads, stream);
  return cudaLaunchKernelEx(&config, write_chunk<Words>, chunk, words, to);
}

}  // namespace

cudaError_t validate(const Geometry& geometry, const uint8_t* message, int64_t workers, uint32_t* found,
                     cudaStream_t stream) {
  const cudaLaunchConfig_t config = grid_of(geometry.tiles, stream);
  return cudaLaunchKernelEx(&config, validate_message, geometry, message, workers, found);
}

cudaError_t upload(const void* from, int64_t bytes, void* to, cudaStream_t stream) {
  const auto* source = static_cast<const unsigned char*>(from);
  auto* target = static_cast<unsigned char*>(to);
  constexpr int64_t most = 16 * kLargeChunk;
  for (int64_t at = 0; at < bytes; at += most) {
    const int64_t part = bytes - at < most ? bytes - at : most;
    const auto launch = part <= 16 * kSmallChunk ? launch_chunk<kSmallChunk> : launch_chunk<kLargeChunk>;
    const cudaError_t error = launch(source + at, part, reinterpret_cast<uint4*>(target + at), stream);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace cuda
}  // namespace terngrad
