// The operations on host arrays: checks the arguments, cuts the work, calls the kernels. docs/contract.md says what
// comes out.
//
// A bucket is given as one array a layer, or as one flat array of all of them (for the layout of a shard: of its
// pieces).
#pragma once

#include "../contract/ternarize.h"
#include "arrays.h"
#include "layout.h"

namespace terngrad {

// Values that the caller passes for each group of the layout: both arrays, or neither (size 0).
struct PassedScales {
  Array scale;
  Array limit;
};

// How a layer's own scale is measured. clip: > 0, or 0 for none.
struct Measure {
  double clip;
  bool center;
};

// Random bits: layer `i` of the bucket draws with layer word `layer + i`.
struct DrawBase {
  uint64_t seed;
  uint64_t offset;
  uint32_t layer;
};

// ---- all of these throw TypeError, ValueError or BufferError, before anything is written

TERNGRAD_API void scales(const Layout& layout, const Arrays& x, Measure measure, const Array& scale,
                         const Array& limit);

TERNGRAD_API void clip(const Layout& layout, const Arrays& x, Measure measure, const PassedScales* passed,
                       const Arrays& out);

TERNGRAD_API void ternarize(const Layout& layout, const Arrays& x, Measure measure, const PassedScales* passed,
                            DrawBase draw, const Arrays& trits, const Array& scale);

TERNGRAD_API void encode(const Layout& layout, const Arrays& x, Measure measure, const PassedScales* passed,
                         DrawBase draw, const Array& data);

// out = weight * message, or out += it.
TERNGRAD_API void decode(const Layout& layout, const Array& data, double weight, bool accumulate, const Arrays& out);

// `messages`: one array each, or one array of several messages back to back.
TERNGRAD_API void decode_sum(const Layout& layout, const Arrays& messages, const std::vector<double>& weights,
                             const Arrays& out);

// Messages of `workers` workers each, whose trits or counts are added: one, or several back to back.
struct Summand {
  const Layout* layout;
  Array data;
  int64_t workers;
};

// The pieces of all layouts agree but for how trits are packed; those of `result` are counts and float32.
TERNGRAD_API void sum_trits(const std::vector<Summand>& summands, const Layout& result, const Array& data);

// The sum that decode_sum gives, in float32, encoded again with random bits of its own. `result` differs from `layout`
// in how trits are packed alone.
TERNGRAD_API void repack(const Layout& layout, const Arrays& messages, const std::vector<double>& weights,
                         Measure measure, const PassedScales* passed, DrawBase draw, const Layout& result,
                         const Array& data);

TERNGRAD_API void pack(const Array& trits, Packing packing, const Array& out);
TERNGRAD_API void unpack(const Array& payload, Packing packing, const Array& out);

// Throws CorruptError unless the message is one that an encoder, or sum_trits of `workers` workers, could have written.
TERNGRAD_API void validate(const Layout& layout, const Array& data, int64_t workers = 1);

// ---- the contract's inner values, for tests and the self-test

TERNGRAD_API PhiloxWords philox(PhiloxWords counter, uint32_t key0, uint32_t key1);
TERNGRAD_API Quantiser quantiser(float scale, float limit);
TERNGRAD_API Statistics statistics(const Array& x, bool center);
TERNGRAD_API void uniforms(DrawBase draw, int64_t first, const Array& out);
TERNGRAD_API void thresholds(const Array& x, float scale, float limit, const Array& out);

}  // namespace terngrad
