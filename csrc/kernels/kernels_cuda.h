// The kernels on CUDA devices, as the runtime calls them. <operation>_cuda.cu.
//
// Each function launches the kernels of one operation on a stream and returns at once: what CUDA said of the launch.
// The number of launches is the same for any number of layers. All addresses are the device's; those of floating-point
// arrays are multiples of the element, others are any. The bits are those of the scalar kernels, whatever the grid.
#pragma once

#include <cuda_runtime.h>

#include "../contract/message.h"
#include "../contract/ternarize.h"

namespace terngrad {
namespace cuda {

// A block has a stripe for each of its warps to measure, or a unit for each of them to encode or decode.
constexpr int kWarp = 32;
constexpr int kWarps = 8;
constexpr int kThreads = kWarp * kWarps;
constexpr int64_t kMeasured = kWarps * kStripe;
constexpr int64_t kTile = kWarps * kUnit;  // of one array

// Blocks of one launch.
constexpr int64_t kMostBlocks = INT32_MAX;

// What a block does where one launch measures and encodes: stripe `i % kWarps` of measured tile `i / kWarps`, or
// tile i of the message; i < 2^30.
constexpr uint32_t kItemEncodes = uint32_t{1} << 31;
constexpr uint32_t kItemPasses = uint32_t{1} << 30;  // a stripe that the second-level cache need not keep
constexpr uint32_t kItemPlace = kItemPasses - 1;
constexpr int64_t kMostItems = int64_t{1} << 22;

// Blocks of it that a processor runs side by side: it is registers that limit them.
constexpr int kBlocksAtOnce = 3;

// In `Sums::arrived`, of a group whose scale is there. Blocks are fewer.
constexpr uint32_t kAllArrived = uint32_t{1} << 31;

// The pieces that share a scale: neighbours in memory.
struct Group {
  int64_t first_piece;
  int64_t last_piece;
  int64_t size;
  int64_t first_stripe;  // where its sums lie among those of all groups
};

struct Gap {
  int64_t begin;
  int64_t end;
};

// A layout, as the runtime keeps it on the device. Units go to warps in order; `piece_units[i]` is the first of piece
// i. Measured tiles go to blocks; `group_tiles[i]` is the first of group i. A piece or group has at least one.
struct Geometry {
  const Piece* pieces;
  const int64_t* piece_units;
  const Group* groups;
  const int64_t* group_tiles;
  const Gap* gaps;        // bytes of the message that are 0
  const uint32_t* order;  // items, as blocks take them one after the other
  int32_t piece_count;
  int32_t group_count;
  int64_t gap_count;
  int64_t items;  // of `order`; 0: too many for one launch
  int64_t units;
  int64_t tiles;  // of kWarps units
  int64_t measured_tiles;
  int64_t stripes;
  int64_t most_stripes;  // of a group
  int64_t few_blocks;    // that the device runs side by side, each with the memory to sum a stripe together
  int64_t kept_bytes;    // of what was read last, which the device's second-level cache still has afterwards
};

// The layers' memory: one flat array, or one a layer, whose addresses travel with the launch where they are few.
constexpr int64_t kFewArrays = 192;
struct Bucket {
  unsigned char* flat;
  unsigned char* const* layers;  // on the device; null where they are few
  unsigned char* few[kFewArrays];
};

struct Message {
  const uint8_t* data;
  const Piece* pieces;  // of its layout: the same cuts, its own packings and offsets
  float weight;
};

constexpr int64_t kFewMessages = 192;
struct Messages {
  int64_t count;
  const Message* many;  // on the device; null where they are few
  Message few[kFewMessages];
};

// Random bits. An address takes the place of the number: eight bytes there, a multiple of 4.
struct Draws {
  uint64_t seed;
  uint64_t offset;
  const uint32_t* seed_at;
  const uint32_t* offset_at;
  uint32_t layer;  // with bit 31 set for second hops
};

// Where a group's scale comes from: passed (both), or measured before.
struct ScaleSource {
  const float* scale;
  const float* limit;
  const Scale* measured;
};

// The sums of each stripe, and what is to be made of them.
struct StripeSums {
  float* q;
  float* s;  // with `center`
  uint32_t* top;
  double clip;
  bool center;
};

// What measuring leaves. All but the counters, which start at 0, is written before it is read.
struct Sums {
  StripeSums stripes;
  uint32_t* arrived;  // blocks that are done with each group
  uint32_t* taken;    // of the items
  Scale* scales;      // of each group; or, where not null, these two
  float* scale;
  float* limit;
};

struct Measurement {
  bool announced;  // in `arrived`, when a group's scale is there
  Sums sums;
  int64_t first_kept;  // the tile from which on what is read shall stay in the cache
};

// Scale and limit of every group, over the array or over the sum of messages.
cudaError_t measure(const Geometry& geometry, const Bucket& x, DType dtype, const Measurement& measurement,
                    cudaStream_t stream);
cudaError_t measure_sum(const Geometry& geometry, const Messages& messages, const Measurement& measurement,
                        cudaStream_t stream);
// The same in two launches that count nothing, for few stripes: a block sums each, then a warp puts those of each group
// together.
cudaError_t sum_stripes(const Geometry& geometry, const Bucket& x, DType dtype, const StripeSums& stripes,
                        cudaStream_t stream);
cudaError_t fold_stripes(const Geometry& geometry, const Sums& sums, cudaStream_t stream);

// The whole message: scales, payloads, gaps.
cudaError_t encode(const Geometry& geometry, const Bucket& x, DType dtype, const ScaleSource& scales,
                   const Draws& draws, uint8_t* message, cudaStream_t stream);
// The same after sum_stripes, each of whose sums every warp that needs them puts together by itself.
cudaError_t encode_small(const Geometry& geometry, const Bucket& x, DType dtype, const StripeSums& stripes,
                         const Draws& draws, uint8_t* message, cudaStream_t stream);
// Scales and all in one launch. Some blocks wait for others, which are always such as began before them.
cudaError_t encode_at_once(const Geometry& geometry, const Bucket& x, DType dtype, const Measurement& measurement,
                           const Draws& draws, uint8_t* message, cudaStream_t stream);
// The same as encode from the sum of messages; the pieces of `result` differ from those of `geometry` in packing and
// offsets.
cudaError_t encode_sum(const Geometry& geometry, const Messages& messages, const ScaleSource& scales,
                       const Draws& draws, const Geometry& result, uint8_t* message, cudaStream_t stream);
cudaError_t ternarize(const Geometry& geometry, const Bucket& x, DType dtype, const ScaleSource& scales,
                      const Draws& draws, const Bucket& trits, float* scale, cudaStream_t stream);

// A passed limit that is not above 0 gives NaN. `out` may be `x`.
cudaError_t clip(const Geometry& geometry, const Bucket& x, DType dtype, const ScaleSource& scales, const Bucket& out,
                 cudaStream_t stream);

// out = weight * message, of one; out (+0 if `fresh`) plus the sum of weight * message, in order.
cudaError_t decode(const Geometry& geometry, const Messages& messages, DType dtype, const Bucket& out,
                   cudaStream_t stream);
cudaError_t decode_sum(const Geometry& geometry, const Messages& messages, bool fresh, DType dtype, const Bucket& out,
                       cudaStream_t stream);

// The whole message of the sums; `geometry` is the result's.
cudaError_t sum_trits(const Geometry& geometry, const Messages& messages, uint8_t* message, cudaStream_t stream);

cudaError_t pack(const int8_t* trits, int64_t n, Packing packing, uint8_t* payload, cudaStream_t stream);
cudaError_t unpack(const uint8_t* payload, int64_t n, Packing packing, int8_t* trits, cudaStream_t stream);

// Sets *found to 1 where the message is not canonical.
cudaError_t validate(const Geometry& geometry, const uint8_t* message, int64_t workers, uint32_t* found,
                     cudaStream_t stream);

// Copies host memory to the device inside the launches themselves, so that nothing has to outlive the call and a
// captured graph has its own copy. A launch for every 32,000 bytes. `to`: a multiple of 16, with room for one too.
cudaError_t upload(const void* from, int64_t bytes, void* to, cudaStream_t stream);

}  // namespace cuda
}  // namespace terngrad
