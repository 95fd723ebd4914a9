#include "../csrc/kernels/philox_simd.h"
#include "bounds.h"

namespace terngrad {
namespace bench {
namespace TERNGRAD_ISA {

using namespace terngrad::TERNGRAD_ISA;

uint32_t philox(const Draw& draw, int64_t n) {
  const PhiloxConstants constants = philox_constants(draw);
  Ints kept[4] = {zero_ints(), zero_ints(), zero_ints(), zero_ints()};
  constexpr int64_t kBlocks = kLanes;  // two registers, as the kernels take them
  for (int64_t block = 0; block < n / 16; block += kBlocks) {
    Words words[2];
    terngrad::TERNGRAD_ISA::philox(constants, static_cast<uint32_t>(block), words);
    for (int i = 0; i < 4; ++i) kept[i] = merge(kept[i], merge(words[0].w[i], words[1].w[i]));
  }
  return static_cast<uint32_t>(largest_lane(merge(merge(kept[0], kept[1]), merge(kept[2], kept[3]))));
}

}  // namespace TERNGRAD_ISA
}  // namespace bench
}  // namespace terngrad
