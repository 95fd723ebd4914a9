// Where everything lies in a message. docs/contract.md, section 5.
#pragma once

#include "pack.h"

namespace terngrad {

enum class DType : uint8_t { float32 = 0, float16 = 1, bfloat16 = 2, float64 = 3 };

constexpr int64_t kAlignment = 16;
// Whole tiles of every packing (512 and 640), whole Philox blocks. Shards and blocks are cut here only.
constexpr int64_t kUnit = 2560;
// Blocks of 16 elements are counted in 32 bits.
constexpr int64_t kLargestLayer = int64_t{1} << 36;
constexpr int64_t kFloat32Weight = 16;

TERNGRAD_CONTRACT int64_t size_of(DType dtype) { return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2; }

TERNGRAD_CONTRACT int64_t aligned(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

// A run of elements of one layer (or block) in one shard, with a scale field of its own.
struct Piece {
  int64_t layer;       // position of its layer in the bucket
  int64_t first;       // its first element's position in the layer
  int64_t size;        // elements
  int64_t at;          // its first element's position in the flat array
  int64_t group;       // whose scale and limit it takes
  int64_t scale_at;    // byte offset of its scale field in the message
  int64_t payload_at;  // byte offset of its payload in the message
  Packing packing;
};

// The shard that a unit goes to. Weights stay below 2^60 (runtime/layout.cpp), so 128 bits hold the product.
TERNGRAD_CONTRACT int64_t shard_of(int64_t shards, int64_t weight_before, int64_t weight_total) {
  if (weight_total == 0) return 0;
  __extension__ using Wide = unsigned __int128;
  const Wide product = static_cast<Wide>(shards) * static_cast<uint64_t>(weight_before);
  const auto shard = static_cast<int64_t>(product / static_cast<uint64_t>(weight_total));
  return shard < shards - 1 ? shard : shards - 1;
}

}  // namespace terngrad
