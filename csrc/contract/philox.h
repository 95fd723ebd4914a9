// Philox4x32-10 (Salmon et al., SC 2011) and the mapping from an element to its 31 random bits. docs/contract.md,
// section 3.
#pragma once

#include "platform.h"

namespace terngrad {

constexpr uint32_t kPhiloxM0 = 0xD2511F53u;
constexpr uint32_t kPhiloxM1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxW0 = 0x9E3779B9u;
constexpr uint32_t kPhiloxW1 = 0xBB67AE85u;
constexpr int kPhiloxRounds = 10;

// Bit 31 of the layer word: set by a second hop (repack), which so shares no bits with the first.
constexpr uint32_t kSecondHop = 0x80000000u;

struct PhiloxWords {
  uint32_t w[4];
};

// The upper half of a product. (nvcc would carry a product of 64 bits through all rounds, at an addition each.)
TERNGRAD_CONTRACT uint32_t upper_product(uint32_t a, uint32_t b) {
#if defined(__CUDA_ARCH__)
  return __umulhi(a, b);
#else
  return static_cast<uint32_t>(static_cast<uint64_t>(a) * b >> 32);
#endif
}

TERNGRAD_CONTRACT PhiloxWords philox4x32_10(PhiloxWords counter, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < kPhiloxRounds; ++round) {
    counter = PhiloxWords{{upper_product(kPhiloxM1, counter.w[2]) ^ counter.w[1] ^ key0, kPhiloxM1 * counter.w[2],
                           upper_product(kPhiloxM0, counter.w[0]) ^ counter.w[3] ^ key1, kPhiloxM0 * counter.w[0]}};
    key0 += kPhiloxW0;
    key1 += kPhiloxW1;
  }
  return counter;
}

// What one layer's random bits depend on, besides the element's position.
struct Draw {
  uint64_t seed;
  uint64_t offset;
  uint32_t layer;
};

TERNGRAD_CONTRACT PhiloxWords philox_block(const Draw& draw, uint32_t block) {
  const PhiloxWords counter{
      {block, draw.layer, static_cast<uint32_t>(draw.offset), static_cast<uint32_t>(draw.offset >> 32)}};
  return philox4x32_10(counter, static_cast<uint32_t>(draw.seed), static_cast<uint32_t>(draw.seed >> 32));
}

// Blocks run along the columns of a group of four rows: one block serves four columns of four rows.
TERNGRAD_CONTRACT uint32_t block_of(int64_t element) {
  const int64_t row = element / 128;
  const int64_t column = element % 128;
  return static_cast<uint32_t>(32 * (row / 4) + column / 4);
}

// u in [0, 2^31) of the element in row i (mod 4) and column j (mod 4) of a block. The top byte comes from the row's own
// word, the rest from the xor of two others: elements of different rows are independent, those of one row share no top
// byte.
TERNGRAD_CONTRACT uint32_t uniform_of(const PhiloxWords& words, int i, int j) {
  const uint32_t w = words.w[i];
  const uint32_t y = words.w[(i + 1) % 4] ^ words.w[(i + 2) % 4];
  const uint32_t top = (w >> (8 * j)) & 255u;
  const uint32_t y0 = (y >> (8 * j)) & 255u;
  const uint32_t y1 = (y >> (8 * ((j + 1) % 4))) & 255u;
  const uint32_t y2 = (y >> (8 * ((j + 2) % 4))) & 255u;
  return (top << 24 | y0 << 16 | y1 << 8 | y2) >> 1;
}

}  // namespace terngrad
