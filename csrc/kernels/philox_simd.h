// Philox4x32-10 in vectors, kBlocks blocks in each: contract/philox.h says what it is, simd_<isa>.h gives the
// operations.
#pragma once

#include "simd.h"

namespace terngrad {
namespace TERNGRAD_ISA {
namespace {

// The first rounds see only the block number vary, so most of them is done once.
struct PhiloxConstants {
  Ints first_c2;   // round 1: c3 ^ key1
  Ints second_c0;  // round 2: c1 ^ key0
  Ints second_c2;  // round 2: the upper word of M0 * c0, ^ key1
  Ints third_c2;   // round 3: c3, which is the lower word of that product, ^ key1
  Ints key0[kPhiloxRounds];
  Ints key1[kPhiloxRounds];
};

TERNGRAD_SIMD PhiloxConstants philox_constants(const Draw& draw) {
  PhiloxConstants constants;
  uint32_t key0 = static_cast<uint32_t>(draw.seed);
  uint32_t key1 = static_cast<uint32_t>(draw.seed >> 32);
  const auto c2 = static_cast<uint32_t>(draw.offset);
  const auto c3 = static_cast<uint32_t>(draw.offset >> 32);
  const uint64_t product1 = static_cast<uint64_t>(kPhiloxM1) * c2;
  const uint32_t c0_after = static_cast<uint32_t>(product1 >> 32) ^ draw.layer ^ key0;
  const auto c1_after = static_cast<uint32_t>(product1);
  const uint64_t product0 = static_cast<uint64_t>(kPhiloxM0) * c0_after;
  constants.first_c2 = all_words(c3 ^ key1);
  constants.second_c0 = all_words(c1_after ^ (key0 + kPhiloxW0));
  constants.second_c2 = all_words(static_cast<uint32_t>(product0 >> 32) ^ (key1 + kPhiloxW1));
  constants.third_c2 = all_words(static_cast<uint32_t>(product0) ^ (key1 + 2 * kPhiloxW1));
  for (int round = 0; round < kPhiloxRounds; ++round) {
    constants.key0[round] = all_words(key0);
    constants.key1[round] = all_words(key1);
    key0 += kPhiloxW0;
    key1 += kPhiloxW1;
  }
  return constants;
}

// The words of the kRegisters * kBlocks blocks from `first` on: those of a step. One multiply waits for the one before
// it, so the registers go through the rounds side by side.
TERNGRAD_SIMD void philox(const PhiloxConstants& k, uint32_t first, Words (&c)[kRegisters]) {
  const Ints m0 = all_words(kPhiloxM0);
  const Ints m1 = all_words(kPhiloxM1);
  Products p0[kRegisters];
  Products p1[kRegisters];
  // Round 1: c0 and c1 come out the same for all blocks.
#pragma GCC unroll 4
  for (int n = 0; n < kRegisters; ++n) p0[n] = products(block_numbers(first + static_cast<uint32_t>(n * kBlocks)), m0);
  // Round 2: c3 comes out the same for all blocks.
#pragma GCC unroll 4
  for (int n = 0; n < kRegisters; ++n) {
    p1[n] = products(exclusive_or(upper_words(p0[n]), k.first_c2), m1);
    c[n].w[2] = exclusive_or(lower_words(p0[n]), k.second_c2);
  }
#pragma GCC unroll 4
  for (int n = 0; n < kRegisters; ++n) {
    c[n].w[0] = exclusive_or(upper_words(p1[n]), k.second_c0);
    c[n].w[1] = lower_words(p1[n]);
  }
#pragma GCC unroll 8
  for (int round = 2; round < kPhiloxRounds; ++round) {
#pragma GCC unroll 4
    for (int n = 0; n < kRegisters; ++n) {
      p0[n] = products(c[n].w[0], m0);
      p1[n] = products(c[n].w[2], m1);
    }
#pragma GCC unroll 4
    for (int n = 0; n < kRegisters; ++n) {
      const Ints upper0 = upper_words(p0[n]);
      const Ints upper1 = upper_words(p1[n]);
      c[n].w[0] = exclusive_or(upper1, c[n].w[1], k.key0[round]);
      c[n].w[2] = round == 2 ? exclusive_or(upper0, k.third_c2) : exclusive_or(upper0, c[n].w[3], k.key1[round]);
      c[n].w[1] = lower_words(p1[n]);
      c[n].w[3] = lower_words(p0[n]);
    }
  }
}

}  // namespace
}  // namespace TERNGRAD_ISA
}  // namespace terngrad
