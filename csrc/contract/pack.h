// Trits and their sums to bytes and back. docs/contract.md, section 5.
//
// A tile has as many rows as a byte holds values, and 128 columns; byte c of a tile holds column c. The last, partial
// tile of q elements has ceil(q / rows) columns.
#pragma once

#include "scale.h"

namespace terngrad {

enum class Packing : uint8_t { two_bit = 0, base3 = 1, float32 = 2, counts4 = 3, counts8 = 4, counts16 = 5 };

// What trits are packed with, and what sums of them are.
TERNGRAD_CONTRACT bool is_ternary(Packing packing) { return packing <= Packing::base3; }
TERNGRAD_CONTRACT bool is_counts(Packing packing) { return packing >= Packing::counts4; }

// Workers whose trits a count holds.
TERNGRAD_CONTRACT int64_t most_workers(Packing packing) {
  return packing == Packing::counts4 ? 7 : packing == Packing::counts8 ? 127 : 32767;
}

// Rows of a tile = values in a byte. (float32 and counts16 have no tiles: a value is several bytes, in element order.)
TERNGRAD_CONTRACT int64_t rows_of(Packing packing) {
  return packing == Packing::base3 ? 5 : packing == Packing::counts4 ? 2 : packing == Packing::counts8 ? 1 : 4;
}

TERNGRAD_CONTRACT int64_t tile_of(Packing packing) { return rows_of(packing) * kColumns; }

TERNGRAD_CONTRACT int64_t payload_bytes(Packing packing, int64_t n) {
  if (packing == Packing::float32) return 4 * n;
  if (packing == Packing::counts16) return 2 * n;
  const int64_t rows = rows_of(packing);
  return n / rows + (n % rows != 0);
}

TERNGRAD_CONTRACT uint32_t power_of_three(int64_t row) {
  return row == 0 ? 1u : row == 1 ? 3u : row == 2 ? 9u : row == 3 ? 27u : 81u;
}

// A value's share of its byte: shares of the rows are added. Two's complement makes the trit -1 the code 11. A count is
// taken modulo 2^bits.
TERNGRAD_CONTRACT uint32_t code_of(Packing packing, int32_t value, int64_t row) {
  if (packing == Packing::base3) return power_of_three(row) * (value < 0 ? 2u : static_cast<uint32_t>(value));
  if (packing == Packing::counts8) return static_cast<uint32_t>(value) & 255u;
  if (packing == Packing::counts4) return (static_cast<uint32_t>(value) & 15u) << (4 * row);
  return (static_cast<uint32_t>(value) & 3u) << (2 * row);
}

// Total: code 10 gives 0, a base-3 digit is taken mod 3.
TERNGRAD_CONTRACT int8_t value_in(Packing packing, uint32_t byte, int64_t row) {
  if (packing == Packing::base3) {
    // Thrice the fraction of byte / 3^(row + 1) has the digit as its whole part. 16 bits are exact for every byte: the
    // factor, 2^16 / 3^(row + 1) rounded up, adds less than 255 / 2^16 to a fraction, and the next digit begins 1 / 3^5
    // further.
    const uint32_t factor = row == 0 ? 21846u : row == 1 ? 7282u : row == 2 ? 2428u : row == 3 ? 810u : 270u;
    const auto fraction = static_cast<uint16_t>(byte * factor);
    const auto digit = static_cast<uint16_t>(fraction * 3u >> 16);
    return static_cast<int8_t>(digit - 3 * (digit >> 1));
  }
  if (packing == Packing::counts8) return static_cast<int8_t>(static_cast<int>(byte ^ 128u) - 128);
  if (packing == Packing::counts4) return static_cast<int8_t>(static_cast<int>((byte >> (4 * row) & 15u) ^ 8u) - 8);
  const uint32_t code = byte >> (2 * row) & 3u;
  return static_cast<int8_t>(code == 3u ? -1 : static_cast<int>(code & 1u));
}

// A sign of any int8, as `pack` takes it.
TERNGRAD_CONTRACT int8_t sign_of(int8_t value) { return static_cast<int8_t>((value > 0) - (value < 0)); }

// Whether a byte of trits is one that an encoder writes where all its rows are in use.
TERNGRAD_CONTRACT bool is_canonical(Packing packing, uint32_t byte) {
  if (packing == Packing::base3) return byte <= 242u;
  return (byte & ~(byte << 1) & 0xaau) == 0;
}

// Whether byte `at` of a payload of counts has counts within +-workers alone.
TERNGRAD_CONTRACT bool is_count_within(Packing packing, const uint8_t* payload, int64_t at, int64_t workers) {
  if (packing == Packing::counts16) {
    const auto count = static_cast<int16_t>(payload[at] | static_cast<unsigned>(payload[at ^ 1]) << 8);
    return at % 2 != 0 || (count <= workers && -count <= workers);
  }
  for (int64_t row = 0; row < rows_of(packing); ++row) {
    const int count = value_in(packing, payload[at], row);
    if (count > workers || -count > workers) return false;
  }
  return true;
}

}  // namespace terngrad
