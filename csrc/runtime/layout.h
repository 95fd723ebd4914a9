// The geometry of a message: which elements lie where. docs/contract.md, section 5.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "../contract/message.h"
#include "export.h"

namespace terngrad {

// What CUDA devices keep of a layout (cuda.cpp).
class OnDevices;

class TERNGRAD_API Layout {
 public:
  // `sizes`: elements of each layer. `packings`: one, or one a layer. `block`: elements of a block, 0 for none.
  // `index`: 0..shards-1 for the layout of that shard alone, -1 for the whole. Throws ValueError.
  Layout(std::vector<int64_t> sizes, std::vector<Packing> packings, int64_t block, int64_t shards, int64_t index);

  // What the layout was made from, as numbers, so that it can be made again elsewhere: block, shards, index, the number
  // of layers, their sizes, the packings.
  const std::vector<int64_t>& description() const { return description_; }
  const std::vector<Piece>& pieces() const { return pieces_; }
  // Elements of each layer that lie in this layout.
  const std::vector<int64_t>& sizes() const { return sizes_; }
  // Byte ranges [begin, end) of the message that hold neither scales nor payload, and are 0.
  const std::vector<std::pair<int64_t, int64_t>>& gaps() const { return gaps_; }
  int64_t layers() const { return static_cast<int64_t>(sizes_.size()); }
  int64_t size() const { return size_; }
  int64_t nbytes() const { return nbytes_; }
  // Scales and limits that it takes: layers, or blocks, or the pieces of a shard. Pieces of one group are neighbours.
  int64_t groups() const { return groups_; }
  bool is_shard() const { return is_shard_; }
  // Made when a device first meets the layout, by cuda.cpp, which also sees to it that threads take turns.
  std::shared_ptr<OnDevices>& on_devices() const { return on_devices_; }

 private:
  std::vector<int64_t> description_;
  std::vector<int64_t> sizes_;
  std::vector<Piece> pieces_;
  std::vector<std::pair<int64_t, int64_t>> gaps_;
  int64_t size_ = 0;
  int64_t nbytes_ = 0;
  int64_t groups_ = 0;
  bool is_shard_ = false;
  mutable std::shared_ptr<OnDevices> on_devices_;
};

}  // namespace terngrad
