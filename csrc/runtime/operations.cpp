#include "operations.h"

#include <cstring>
#include <vector>

#include "dispatch.h"
#include "errors.h"
#include "float_environment.h"
#include "work.h"

namespace terngrad {

namespace {

// The layers' memory, whichever way they were given.
class Bucket {
 public:
  Bucket(const Layout& layout, const Arrays& arrays) : arrays_(arrays), flat_(is_flat(layout, arrays)) {}

  unsigned char* address(const Piece& piece, int64_t element = 0) const {
    const Array& array = arrays_[flat_ ? 0 : static_cast<size_t>(piece.layer)];
    return array.data + ((flat_ ? piece.at : piece.first) + element) * bytes_of(array.element);
  }

  static bool is_flat(const Layout& layout, const Arrays& arrays) {
    return layout.is_shard() || (arrays.size() == 1 && arrays[0].size == layout.size());
  }

 private:
  const Arrays& arrays_;
  bool flat_;
};

void check_shapes(const Layout& layout, const Arrays& arrays, const char* argument) {
  if (arrays.size() == 1 && Bucket::is_flat(layout, arrays)) return check_size(arrays[0], layout.size());
  if (layout.is_shard())
    throw ValueError(std::string(argument) + ": expected one flat array for the layout of a shard");
  if (static_cast<int64_t>(arrays.size()) != layout.layers()) {
    throw ValueError(std::string(argument) + ": expected " + std::to_string(layout.layers()) + " arrays, got " +
                     std::to_string(arrays.size()));
  }
  for (size_t i = 0; i < arrays.size(); ++i) check_size(arrays[i], layout.sizes()[i]);
}

DType check_inputs(const Layout& layout, const Arrays& x) {
  check_shapes(layout, x, "x");
  if (x.empty()) return DType::float32;
  const DType dtype = dtype_of(x[0].element, x[0].name());
  for (const Array& array : x) check_element(array, x[0].element);
  return dtype;
}

void check_outputs(const Layout& layout, const Arrays& out, Element element) {
  check_shapes(layout, out, "out");
  for (const Array& array : out) check_output(array, element, array.size);
}

void check_passed(const Layout& layout, const PassedScales* passed) {
  if (!passed) return;
  for (const Array* array : {&passed->scale, &passed->limit}) {
    check_element(*array, Element::float32);
    check_size(*array, layout.groups());
  }
}

float float_at(const Array& array, int64_t index) { return load<float>(array.data, index); }

Statistics fold(StripeSums* sums) { return Statistics{sums->top, tree_sum(sums->q, kBins), tree_sum(sums->s, kBins)}; }

// Parts of a layer take whole bins, so that every bin is summed by one thread, in order.
Statistics measure_sums(const void* x, DType dtype, int64_t n, bool center) {
  const Kernels& kernel = kernels();
  const int64_t stripes = (n + kStripe - 1) / kStripe;
  const int64_t parts = std::min(parts_for(n), kBins);
  StripeSums sums{};
  if (parts == 1) {
    kernel.scales(x, dtype, n, 0, stripes, center, &sums);
    return fold(&sums);
  }
  std::vector<StripeSums> partial(static_cast<size_t>(parts));
  parallel(parts, [&](int64_t part) {
    const int64_t first_bin = kBins * part / parts;
    const int64_t last_bin = kBins * (part + 1) / parts;
    for (int64_t round = 0; round < stripes; round += kBins) {
      const int64_t first = std::min(stripes, round + first_bin);
      const int64_t last = std::min(stripes, round + last_bin);
      kernel.scales(x, dtype, n, first, last, center, &partial[static_cast<size_t>(part)]);
    }
  });
  // Each bin is +0 in all parts but one, and no sum of squares is -0; a sum of differences that is -0 cannot be either,
  // since bins start at +0.
  for (const StripeSums& part : partial) {
    for (int64_t bin = 0; bin < kBins; ++bin) {
      sums.q[bin] += part.q[bin];
      sums.s[bin] += part.s[bin];
    }
    sums.top = std::max(sums.top, part.top);
  }
  return fold(&sums);
}

Scale measured(const void* x, DType dtype, int64_t n, Measure measure) {
  if (n == 0) return Scale{0.0f, float_of(kInfinity32)};
  return scale_of(measure_sums(x, dtype, n, measure.center), n, measure.clip, measure.center);
}

// A float32 layer is carried: its scale field is 1 and nothing is measured.
constexpr Scale kCarried{1.0f, __builtin_inff()};

// The pieces [first, last) of a group: neighbours in memory, one scale.
struct Group {
  size_t first;
  size_t last;
  int64_t size;
};

template <class F>
void for_each_group(const Layout& layout, const F& f) {
  const std::vector<Piece>& pieces = layout.pieces();
  for (size_t first = 0, last = 0; first < pieces.size(); first = last) {
    int64_t size = 0;
    for (; last < pieces.size() && pieces[last].group == pieces[first].group; ++last) size += pieces[last].size;
    f(Group{first, last, size});
  }
}

// What each group is quantised with: measured over its elements, or passed.
class ScaleSource {
 public:
  ScaleSource(const Layout& layout, const Bucket& bucket, DType dtype, Measure measure, const PassedScales* passed)
      : layout_(layout), bucket_(bucket), dtype_(dtype), measure_(measure), passed_(passed) {}

  Scale of(const Group& group) const {
    const Piece& piece = layout_.pieces()[group.first];
    if (piece.packing == Packing::float32) return kCarried;
    if (passed_) return passed_scale(float_at(passed_->scale, piece.group), float_at(passed_->limit, piece.group));
    return measured(bucket_.address(piece), dtype_, group.size, measure_);
  }

 private:
  const Layout& layout_;
  const Bucket& bucket_;
  DType dtype_;
  Measure measure_;
  const PassedScales* passed_;
};

// Calls f(scale, group) for all groups: measured first, so that a group that fits the cache is read from memory once.
// Groups that are worth several threads come one by one, on the caller's thread, and f may use the pool; the others are
// put together and given out. f must not throw.
template <class F>
void for_each_scaled_group(const Layout& layout, const ScaleSource& source, const F& f) {
  std::vector<Group> small;
  int64_t small_elements = 0;
  const auto run_small = [&] {
    const int64_t parts = parts_for(small_elements);
    std::vector<size_t> bounds{0};
    int64_t elements = 0;
    for (size_t i = 0; i < small.size(); ++i) {
      elements += small[i].size;
      const auto full = static_cast<int64_t>(bounds.size());
      if (full < parts && elements >= small_elements / parts * full) bounds.push_back(i + 1);
    }
    bounds.push_back(small.size());
    parallel(static_cast<int64_t>(bounds.size()) - 1, [&](int64_t part) {
      for (size_t i = bounds[static_cast<size_t>(part)]; i < bounds[static_cast<size_t>(part) + 1]; ++i) {
        f(source.of(small[i]), small[i]);
      }
    });
    small.clear();
    small_elements = 0;
  };
  for_each_group(layout, [&](const Group& group) {
    if (parts_for(group.size) == 1) {
      small.push_back(group);
      small_elements += group.size;
      return;
    }
    run_small();
    const FloatEnvironment environment;
    f(source.of(group), group);
  });
  run_small();
}

Draw draw_of(const DrawBase& base, const Piece& piece) {
  return Draw{base.seed, base.offset, base.layer + static_cast<uint32_t>(piece.layer)};
}

// ---- NaN everywhere: what a poisoned layer decodes to

template <class T>
void fill_nan(void* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) store_float<T>(out, i, float_of(kNaN32));
}

void fill_nan(DType dtype, void* out, int64_t n) {
  switch (dtype) {
    case DType::float32: return fill_nan<float>(out, n);
    case DType::float16: return fill_nan<Half>(out, n);
    case DType::bfloat16: return fill_nan<BFloat16>(out, n);
    case DType::float64: return fill_nan<double>(out, n);
  }
}

// What becomes of the one message, or of the sum of several (which starts at +0).
enum class Into { written, summed, accumulated };

void decode_terms(const Layout& layout, const std::vector<const uint8_t*>& messages, const std::vector<float>& weights,
                  Into into, DType dtype, const Bucket& out) {
  const Kernels& kernel = kernels();
  const std::vector<Piece>& pieces = layout.pieces();
  const auto count = messages.size();
  // Each part's own terms, allocated here, where that may throw.
  const int64_t parts = parts_for(layout.size());
  std::vector<const uint8_t*> all_payloads(static_cast<size_t>(parts) * count);
  std::vector<float> all_worth(static_cast<size_t>(parts) * count);
  for_each_range(pieces, 0, pieces.size(), parts, [&](int64_t part, const Piece& piece, int64_t begin, int64_t end) {
    const uint8_t** payloads = all_payloads.data() + static_cast<size_t>(part) * count;
    float* worth = all_worth.data() + static_cast<size_t>(part) * count;
    bool poisoned = false;
    for (size_t i = 0; i < count; ++i) {
      payloads[i] = messages[i] + piece.payload_at + payload_bytes(piece.packing, begin);
      const float scale = piece.packing == Packing::float32 ? 1.0f : load<float>(messages[i] + piece.scale_at, 0);
      poisoned = poisoned || is_poisoned(scale);
      worth[i] = weights[i] * scale;
    }
    unsigned char* to = out.address(piece, begin);
    if (poisoned) {
      fill_nan(dtype, to, end - begin);
    } else if (into == Into::written) {
      kernel.decode(payloads[0], piece.packing, end - begin, worth[0], dtype, to);
    } else {
      kernel.decode_sum(Terms{payloads, worth, static_cast<int64_t>(count)}, piece.packing, end - begin,
                        into == Into::summed, dtype, to);
    }
  });
}

std::vector<float> rounded_weights(const std::vector<double>& weights) {
  const FloatEnvironment environment;
  std::vector<float> rounded;
  rounded.reserve(weights.size());
  for (const double weight : weights) {
    rounded.push_back(widen(weight));
    if (is_finite(rounded.back())) continue;
    const std::string name = weights.size() == 1 ? "weight" : "weights[" + std::to_string(rounded.size() - 1) + "]";
    throw ValueError(name + ": expected a number that float32 holds, got " + std::to_string(weight));
  }
  return rounded;
}

DType check_decoded(const Layout& layout, const Arrays& messages, const Arrays& out) {
  const DType dtype = out.empty() ? DType::float32 : dtype_of(out[0].element, out[0].name());
  check_outputs(layout, out, element_of(dtype));
  check_disjoint(out, messages);
  return dtype;
}

void check_packing(Packing packing) {
  if (packing == Packing::float32) throw ValueError("packing: expected 'two_bit' or 'base3', got 'float32'");
}

[[noreturn]] void corrupt(const std::string& what, int64_t byte) {
  throw CorruptError(what + " at byte " + std::to_string(byte) + " of the message");
}

// A ternary payload: only codes that exist, and 0 where the last byte's rows are not in use.
void validate_payload(const uint8_t* payload, const Piece& piece) {
  const int64_t bytes = payload_bytes(piece.packing, piece.size);
  for (int64_t i = 0; i < bytes; ++i) {
    if (!is_canonical(piece.packing, payload[i])) corrupt("a code that does not exist", piece.payload_at + i);
  }
  const int64_t rest = piece.size % tile_of(piece.packing);
  const int64_t columns = payload_bytes(piece.packing, rest);
  for (int64_t slot = rest; slot < columns * rows_of(piece.packing); ++slot) {
    const int64_t byte = bytes - columns + slot % columns;
    if (trit_in(piece.packing, payload[byte], slot / columns) != 0) {
      corrupt("a code behind the last element", piece.payload_at + byte);
    }
  }
}

bool all_zero(const uint8_t* bytes, int64_t count) {
  unsigned any = 0;
  for (int64_t i = 0; i < count; ++i) any |= bytes[i];
  return any == 0;
}

}  // namespace

void scales(const Layout& layout, const Arrays& x, Measure measure, const Array& scale, const Array& limit) {
  const DType dtype = check_inputs(layout, x);
  check_output(scale, Element::float32, layout.groups());
  check_output(limit, Element::float32, layout.groups());
  check_disjoint({scale, limit}, x);
  const Bucket bucket(layout, x);
  const ScaleSource source(layout, bucket, dtype, measure, nullptr);
  for_each_scaled_group(layout, source, [&](Scale found, const Group& group) {
    const int64_t index = layout.pieces()[group.first].group;
    store<float>(scale.data, index, found.scale);
    store<float>(limit.data, index, found.limit);
  });
}

void clip(const Layout& layout, const Arrays& x, Measure measure, const PassedScales* passed, const Arrays& out) {
  const DType dtype = check_inputs(layout, x);
  check_passed(layout, passed);
  check_outputs(layout, out, element_of(dtype));
  check_disjoint(out, x, true);
  if (passed) check_disjoint(out, {passed->limit});
  const Bucket from(layout, x);
  const Bucket to(layout, out);
  const Kernels& kernel = kernels();
  const std::vector<Piece>& pieces = layout.pieces();
  const auto clip_range = [&](float limit, const Piece& piece, int64_t begin, int64_t end) {
    kernel.clip(from.address(piece, begin), dtype, end - begin, limit, to.address(piece, begin));
  };
  if (!passed) {
    const ScaleSource source(layout, from, dtype, measure, nullptr);
    for_each_scaled_group(layout, source, [&](Scale found, const Group& group) {
      for_each_range(
          pieces, group.first, group.last, parts_for(group.size),
          [&](int64_t, const Piece& piece, int64_t begin, int64_t end) { clip_range(found.limit, piece, begin, end); });
    });
    return;
  }
  for_each_range(pieces, 0, pieces.size(), parts_for(layout.size()),
                 [&](int64_t, const Piece& piece, int64_t begin, int64_t end) {
                   const float limit = float_at(passed->limit, piece.group);
                   if (limit > 0.0f) {
                     clip_range(limit, piece, begin, end);
                   } else {
                     fill_nan(dtype, to.address(piece, begin), end - begin);
                   }
                 });
}

void ternarize(const Layout& layout, const Arrays& x, Measure measure, const PassedScales* passed, DrawBase draw,
               const Arrays& trits, const Array& scale) {
  const DType dtype = check_inputs(layout, x);
  check_passed(layout, passed);
  check_outputs(layout, trits, Element::int8);
  check_output(scale, Element::float32, layout.groups());
  Arrays outputs = trits;
  outputs.push_back(scale);
  check_disjoint(outputs, x);
  if (passed) check_disjoint(outputs, {passed->scale, passed->limit});
  const Bucket from(layout, x);
  const Bucket to(layout, trits);
  const Kernels& kernel = kernels();
  const std::vector<Piece>& pieces = layout.pieces();
  const ScaleSource source(layout, from, dtype, measure, passed);
  for_each_scaled_group(layout, source, [&](Scale found, const Group& group) {
    store<float>(scale.data, pieces[group.first].group, found.scale);
    for_each_range(pieces, group.first, group.last, parts_for(group.size),
                   [&](int64_t, const Piece& piece, int64_t begin, int64_t end) {
                     kernel.ternarize(from.address(piece, begin), dtype, end - begin, piece.first + begin,
                                      draw_of(draw, piece), quantiser_of(found),
                                      reinterpret_cast<int8_t*>(to.address(piece, begin)));
                   });
  });
}

void encode(const Layout& layout, const Arrays& x, Measure measure, const PassedScales* passed, DrawBase draw,
            const Array& data) {
  const DType dtype = check_inputs(layout, x);
  check_passed(layout, passed);
  check_output(data, Element::uint8, layout.nbytes());
  check_disjoint({data}, x);
  if (passed) check_disjoint({data}, {passed->scale, passed->limit});
  const Bucket bucket(layout, x);
  const Kernels& kernel = kernels();
  const std::vector<Piece>& pieces = layout.pieces();
  const ScaleSource source(layout, bucket, dtype, measure, passed);
  for (const auto& [begin, end] : layout.gaps()) memset(data.data + begin, 0, static_cast<size_t>(end - begin));
  for_each_scaled_group(layout, source, [&](Scale found, const Group& group) {
    for (size_t i = group.first; i < group.last; ++i) store<float>(data.data + pieces[i].scale_at, 0, found.scale);
    for_each_range(pieces, group.first, group.last, parts_for(group.size),
                   [&](int64_t, const Piece& piece, int64_t begin, int64_t end) {
                     kernel.encode(bucket.address(piece, begin), dtype, end - begin, piece.first + begin,
                                   draw_of(draw, piece), quantiser_of(found), piece.packing,
                                   data.data + piece.payload_at + payload_bytes(piece.packing, begin));
                   });
  });
}

void decode(const Layout& layout, const Array& data, double weight, bool accumulate, const Arrays& out) {
  check_element(data, Element::uint8);
  check_size(data, layout.nbytes());
  const DType dtype = check_decoded(layout, {data}, out);
  const Into into = accumulate ? Into::accumulated : Into::written;
  decode_terms(layout, {data.data}, rounded_weights({weight}), into, dtype, Bucket(layout, out));
}

void decode_sum(const Layout& layout, const Arrays& messages, const std::vector<double>& weights, const Arrays& out) {
  std::vector<const uint8_t*> starts;
  for (const Array& array : messages) {
    check_element(array, Element::uint8);
    if (messages.size() > 1 || weights.size() == 1) {
      check_size(array, layout.nbytes());
      starts.push_back(array.data);
    } else {
      check_size(array, layout.nbytes() * static_cast<int64_t>(weights.size()));
      for (size_t i = 0; i < weights.size(); ++i)
        starts.push_back(array.data + layout.nbytes() * static_cast<int64_t>(i));
    }
  }
  if (starts.size() != weights.size()) {
    throw ValueError("weights: expected " + std::to_string(starts.size()) + ", got " + std::to_string(weights.size()));
  }
  const DType dtype = check_decoded(layout, messages, out);
  decode_terms(layout, starts, rounded_weights(weights), Into::summed, dtype, Bucket(layout, out));
}

void pack(const Array& trits, Packing packing, const Array& out) {
  check_packing(packing);
  check_element(trits, Element::int8);
  check_output(out, Element::uint8, payload_bytes(packing, trits.size));
  check_disjoint({out}, {trits});
  parallel(
      1, [&](int64_t) { kernels().pack(reinterpret_cast<const int8_t*>(trits.data), trits.size, packing, out.data); });
}

void unpack(const Array& payload, Packing packing, const Array& out) {
  check_packing(packing);
  check_element(payload, Element::uint8);
  check_output(out, Element::int8, out.size);
  check_size(payload, payload_bytes(packing, out.size));
  check_disjoint({out}, {payload});
  parallel(1, [&](int64_t) { kernels().unpack(payload.data, out.size, packing, reinterpret_cast<int8_t*>(out.data)); });
}

void validate(const Layout& layout, const Array& data) {
  check_element(data, Element::uint8);
  if (data.size != layout.nbytes()) {
    throw CorruptError("expected " + std::to_string(layout.nbytes()) + " bytes, got " + std::to_string(data.size));
  }
  for (const auto& [begin, end] : layout.gaps()) {
    if (!all_zero(data.data + begin, end - begin)) corrupt("a gap that is not 0", begin);
  }
  for (const Piece& piece : layout.pieces()) {
    const float scale = load<float>(data.data + piece.scale_at, 0);
    const uint8_t* payload = data.data + piece.payload_at;
    if (piece.packing == Packing::float32) {
      if (bits_of(scale) != bits_of(1.0f)) corrupt("a float32 layer whose scale is not 1", piece.scale_at);
      continue;
    }
    const bool live = is_finite(scale) && scale >= kSmallestScale;
    if (!live && bits_of(scale) != 0 && bits_of(scale) != kInfinity32) {
      corrupt("a scale that is neither 0, +infinity nor from 2^-60 up", piece.scale_at);
    }
    if (live) {
      validate_payload(payload, piece);
    } else if (!all_zero(payload, payload_bytes(piece.packing, piece.size))) {
      corrupt("codes under a scale of 0 or +infinity", piece.payload_at);
    }
  }
}

PhiloxWords philox(PhiloxWords counter, uint32_t key0, uint32_t key1) { return philox4x32_10(counter, key0, key1); }

Quantiser quantiser(float scale, float limit) {
  const FloatEnvironment environment;
  return quantiser_of(passed_scale(scale, limit));
}

Statistics statistics(const Array& x, bool center) {
  const DType dtype = dtype_of(x.element, x.name());
  const FloatEnvironment environment;
  return measure_sums(x.data, dtype, x.size, center);
}

void uniforms(DrawBase base, int64_t first, const Array& out) {
  check_output(out, Element::uint32, out.size);
  const Draw draw{base.seed, base.offset, base.layer};
  PhiloxWords words{};
  for (int64_t i = 0; i < out.size; ++i) {
    const int64_t element = first + i;
    if (i == 0 || element % 4 == 0) words = philox_block(draw, block_of(element));
    store<uint32_t>(out.data, i,
                    uniform_of(words, static_cast<int>(element / kColumns % 4), static_cast<int>(element % 4)));
  }
}

void thresholds(const Array& x, float scale, float limit, const Array& out) {
  check_element(x, Element::float32);
  check_output(out, Element::uint32, x.size);
  const FloatEnvironment environment;
  const Quantiser quantiser = quantiser_of(passed_scale(scale, limit));
  for (int64_t i = 0; i < x.size; ++i) {
    store<uint32_t>(out.data, i, quantiser.live ? threshold_of(float_at(x, i), quantiser) : 0u);
  }
}

}  // namespace terngrad
