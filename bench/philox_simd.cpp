#include "../csrc/kernels/philox_simd.h"
#include "bounds.h"

namespace terngrad {
namespace bench {
namespace TERNGRAD_ISA {

using namespace terngrad::TERNGRAD_ISA;

uint32_t philox(const Draw& draw, int64_t n) {
  const PhiloxConstants constants = philox_constants(draw);
  Ints kept[4] = {zero_ints(), zero_ints(), zero_ints(), zero_ints()};
  for (int64_t block = 0; block < n / 16; block += kRegisters * kBlocks) {
    Words words[kRegisters];
    terngrad::TERNGRAD_ISA::philox(constants, static_cast<uint32_t>(block), words);
    for (const Words& each : words) {
      for (int i = 0; i < 4; ++i) kept[i] = exclusive_or(kept[i], each.w[i]);
    }
  }
  return static_cast<uint32_t>(largest_lane(exclusive_or(exclusive_or(kept[0], kept[1], kept[2]), kept[3])));
}

}  // namespace TERNGRAD_ISA
}  // namespace bench
}  // namespace terngrad
