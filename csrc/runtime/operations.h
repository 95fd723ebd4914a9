// The operations: checks the arguments, cuts the work, calls the kernels. docs/contract.md says what comes out.
//
// A bucket is given as one array a layer, or as one flat array of all of them (for the layout of a shard: of its
// pieces).
#pragma once

#include "../contract/ternarize.h"
#include "arrays.h"
#include "errors.h"
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
  // With device arrays: where on the device the numbers lie instead, 8 bytes at a multiple of 4, or null.
  const unsigned char* seed_at = nullptr;
  const unsigned char* offset_at = nullptr;
  int32_t seed_device = kHost;
  int32_t offset_device = kHost;
};

// DrawBase::layer for a bucket of so many layers: their words leave bit 31 free. `text()` is what the caller gave.
template <class Text>
uint32_t layer_word(int64_t layer, int64_t layers, const Text& text) {
  if (layer < 0 || layer > int64_t{kSecondHop} - layers) {
    throw ValueError("layer: expected 0 <= layer and layer + layers <= 2**31, got " + text());
  }
  return static_cast<uint32_t>(layer);
}

// What a call on the arrays of a CUDA device needs beside them: the stream it is put on, and memory of that device for
// its own use until it has run, of scratch_bytes(), at a multiple of 16.
struct Queue {
  void* stream;  // a cudaStream_t
  Array scratch;
};

// What a call on a CUDA device needs at the most. `measured`: whether it looks for scales itself, or validates.
// `arrays`: all that it is given in lists, messages in one array counted each.
TERNGRAD_API int64_t scratch_bytes(const Layout& layout, bool measured, int64_t arrays);

// ---- all of these throw TypeError, ValueError or BufferError, before anything is written. On a CUDA device they
// return when the work is on the stream (but validate), and throw DeviceError where CUDA would not take it.

TERNGRAD_API void scales(const Layout& layout, const Arrays& x, Measure measure, const Array& scale, const Array& limit,
                         const Queue* queue = nullptr);

TERNGRAD_API void clip(const Layout& layout, const Arrays& x, Measure measure, const PassedScales* passed,
                       const Arrays& out, const Queue* queue = nullptr);

TERNGRAD_API void ternarize(const Layout& layout, const Arrays& x, Measure measure, const PassedScales* passed,
                            DrawBase draw, const Arrays& trits, const Array& scale, const Queue* queue = nullptr);

TERNGRAD_API void encode(const Layout& layout, const Arrays& x, Measure measure, const PassedScales* passed,
                         DrawBase draw, const Array& data, const Queue* queue = nullptr);

// out = weight * message, or out += it.
TERNGRAD_API void decode(const Layout& layout, const Array& data, double weight, bool accumulate, const Arrays& out,
                         const Queue* queue = nullptr);

// `messages`: one array each, or one array of several messages back to back.
TERNGRAD_API void decode_sum(const Layout& layout, const Arrays& messages, const std::vector<double>& weights,
                             const Arrays& out, const Queue* queue = nullptr);

// Messages of `workers` workers each, whose trits or counts are added: one, or several back to back.
struct Summand {
  const Layout* layout;
  Array data;
  int64_t workers;
};

// The pieces of all layouts agree but for how trits are packed; those of `result` are counts and float32.
TERNGRAD_API void sum_trits(const std::vector<Summand>& summands, const Layout& result, const Array& data,
                            const Queue* queue = nullptr);

// The sum that decode_sum gives, in float32, encoded again with random bits of its own. `result` differs from `layout`
// in how trits are packed alone.
TERNGRAD_API void repack(const Layout& layout, const Arrays& messages, const std::vector<double>& weights,
                         Measure measure, const PassedScales* passed, DrawBase draw, const Layout& result,
                         const Array& data, const Queue* queue = nullptr);

TERNGRAD_API void pack(const Array& trits, Packing packing, const Array& out, const Queue* queue = nullptr);
TERNGRAD_API void unpack(const Array& payload, Packing packing, const Array& out, const Queue* queue = nullptr);

// Throws CorruptError unless the message is one that an encoder, or sum_trits of `workers` workers, could have written.
TERNGRAD_API void validate(const Layout& layout, const Array& data, int64_t workers = 1, const Queue* queue = nullptr);

// ---- the contract's inner values, for tests and the self-test

TERNGRAD_API PhiloxWords philox(PhiloxWords counter, uint32_t key0, uint32_t key1);
TERNGRAD_API Quantiser quantiser(float scale, float limit);
TERNGRAD_API Statistics statistics(const Array& x, bool center);
TERNGRAD_API void uniforms(DrawBase draw, int64_t first, const Array& out);
TERNGRAD_API void thresholds(const Array& x, float scale, float limit, const Array& out);

}  // namespace terngrad
