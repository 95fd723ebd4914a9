#include "layout.h"

#include <algorithm>
#include <string>

#include "errors.h"

namespace terngrad {

namespace {

__extension__ using Wide = unsigned __int128;

// All elements of a bucket; with the weight of float32 layers (16) that stays below 2^60.
constexpr int64_t kLargestBucket = int64_t{1} << 56;

struct Cut {
  Piece piece;
  int64_t shard;
};

// Elements from `first` of a run of `size` on that go to the same shard as the one at `first`.
// A unit goes to shard k or below while shards * weight_before < (k + 1) * weight_total.
int64_t run_in_shard(int64_t size, int64_t first, int64_t weight, int64_t weight_before, int64_t weight_total,
                     int64_t shards, int64_t shard) {
  if (shard == shards - 1) return size - first;
  const Wide needed = static_cast<Wide>(shard + 1) * static_cast<uint64_t>(weight_total);
  const Wide before = static_cast<Wide>(shards) * static_cast<uint64_t>(weight_before);
  const Wide unit = static_cast<Wide>(shards) * static_cast<uint64_t>(weight * kUnit);
  const Wide units = (needed - before + unit - 1) / unit;
  const Wide elements = units * static_cast<uint64_t>(kUnit);
  return elements < static_cast<uint64_t>(size - first) ? static_cast<int64_t>(elements) : size - first;
}

int64_t weight_of(Packing packing) { return packing == Packing::float32 ? kFloat32Weight : 1; }

}  // namespace

Layout::Layout(std::vector<int64_t> sizes, std::vector<Packing> packings, int64_t block, int64_t shards, int64_t index)
    : sizes_(std::move(sizes)), is_shard_(index >= 0) {
  const auto layers = static_cast<int64_t>(sizes_.size());
  description_ = {block, shards, index, layers};
  description_.insert(description_.end(), sizes_.begin(), sizes_.end());
  for (const Packing packing : packings) description_.push_back(static_cast<int64_t>(packing));
  const auto packing_of = [&](int64_t layer) {
    return packings.size() == 1 ? packings[0] : packings[static_cast<size_t>(layer)];
  };
  if (packings.size() != 1 && packings.size() != sizes_.size()) {
    throw ValueError("packing: " + std::to_string(packings.size()) + " names for " + std::to_string(layers) +
                     " layers");
  }
  if (block < 0 || block % kUnit != 0) {
    throw ValueError("block: " + std::to_string(block) + " is not a positive multiple of " + std::to_string(kUnit));
  }
  if (shards < 1 || shards > INT32_MAX || index >= shards) {
    throw ValueError("shards: expected 1 <= shards < 2**31 and an index below it, got " + std::to_string(shards));
  }
  int64_t weight_total = 0;
  int64_t elements = 0;
  for (int64_t layer = 0; layer < layers; ++layer) {
    const int64_t n = sizes_[static_cast<size_t>(layer)];
    if (n < 0 || n > kLargestLayer) {
      throw ValueError("shapes[" + std::to_string(layer) + "]: " + std::to_string(n) +
                       " elements, expected 0 to 2**36");
    }
    elements += n;
    if (elements > kLargestBucket) throw ValueError("shapes: more than 2**56 elements");
    weight_total += n * weight_of(packing_of(layer));
  }

  std::vector<Cut> cuts;
  int64_t weight_before = 0;
  int64_t at = 0;
  for (int64_t layer = 0; layer < layers; ++layer) {
    const int64_t n = sizes_[static_cast<size_t>(layer)];
    const Packing packing = packing_of(layer);
    const int64_t weight = weight_of(packing);
    for (int64_t begin = 0; begin == 0 || begin < n; begin += block) {
      const int64_t end = block == 0 ? n : std::min(n, begin + block);
      for (int64_t first = begin; first == begin || first < end;) {
        const int64_t shard = shard_of(shards, weight_before, weight_total);
        const int64_t count =
            end == begin ? 0 : run_in_shard(end, first, weight, weight_before, weight_total, shards, shard);
        cuts.push_back(Cut{Piece{layer, first, count, at, groups_, 0, 0, packing}, shard});
        first += count;
        at += count;
        weight_before += count * weight;
        if (count == 0) break;
      }
      ++groups_;
      if (block == 0) break;
    }
  }

  // The common length of the shards, then each piece's place.
  const auto for_each_shard = [&](const auto& f) {
    for (size_t begin = 0, end = 0; begin < cuts.size(); begin = end) {
      while (end < cuts.size() && cuts[end].shard == cuts[begin].shard) ++end;
      f(begin, end);
    }
  };
  int64_t common = shards > 1 ? kAlignment : 0;
  for_each_shard([&](size_t begin, size_t end) {
    int64_t length = aligned(4 * static_cast<int64_t>(end - begin));
    for (size_t i = begin; i < end; ++i) length += aligned(payload_bytes(cuts[i].piece.packing, cuts[i].piece.size));
    common = std::max(common, length);
  });
  if (__builtin_mul_overflow(common, shards, &nbytes_))
    throw ValueError("shards: the message is longer than 2**63 bytes");

  int64_t cursor = 0;
  const auto gap_until = [&](int64_t end) {
    if (end > cursor) gaps_.emplace_back(cursor, end);
  };
  if (is_shard_) {
    nbytes_ = common;
    size_ = groups_ = 0;
    std::fill(sizes_.begin(), sizes_.end(), 0);
  }
  for_each_shard([&](size_t begin, size_t end) {
    const int64_t shard = cuts[begin].shard;
    if (is_shard_ && shard != index) return;
    const int64_t start = is_shard_ ? 0 : shard * common;
    gap_until(start);
    cursor = start + 4 * static_cast<int64_t>(end - begin);
    int64_t payload_at = start + aligned(4 * static_cast<int64_t>(end - begin));
    for (size_t i = begin; i < end; ++i) {
      Piece piece = cuts[i].piece;
      const int64_t bytes = payload_bytes(piece.packing, piece.size);
      piece.scale_at = start + 4 * static_cast<int64_t>(i - begin);
      piece.payload_at = payload_at;
      if (is_shard_) {
        piece.at = size_;
        piece.group = groups_++;
        sizes_[static_cast<size_t>(piece.layer)] += piece.size;
      }
      size_ += piece.size;
      gap_until(payload_at);
      cursor = payload_at + bytes;
      payload_at += aligned(bytes);
      pieces_.push_back(piece);
    }
  });
  gap_until(nbytes_);
}

}  // namespace terngrad
