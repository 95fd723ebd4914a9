#include "operations.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <vector>

#include "cuda.h"
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
Statistics measure_sums(const void* x, DType dtype, int64_t n, bool center, int64_t threads = get_num_threads()) {
  const Kernels& kernel = kernels();
  const int64_t stripes = (n + kStripe - 1) / kStripe;
  const int64_t parts = std::min(parts_for(n, threads), kBins);
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

constexpr Scale kEmpty{0.0f, __builtin_inff()};
// A float32 layer is carried: its scale field is 1 and nothing is measured.
constexpr Scale kCarried{1.0f, __builtin_inff()};

Scale measured(const void* x, DType dtype, int64_t n, Measure measure, int64_t threads) {
  if (n == 0) return kEmpty;
  return scale_of(measure_sums(x, dtype, n, measure.center, threads), n, measure.clip, measure.center);
}

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

// Who works on a group: one of the parts that run side by side, or the caller's thread, as part 0, which may use the
// pool. So one of `part` and `threads` is the least that it can be.
struct Share {
  int64_t part;
  int64_t threads;
};

// What a group need not be measured for.
std::optional<Scale> known_scale(const Piece& piece, const PassedScales* passed) {
  if (piece.packing == Packing::float32) return kCarried;
  if (!passed) return std::nullopt;
  return passed_scale(float_at(passed->scale, piece.group), float_at(passed->limit, piece.group));
}

// What each group is quantised with: measured over its elements, or passed.
class ScaleSource {
 public:
  ScaleSource(const Layout& layout, const Bucket& bucket, DType dtype, Measure measure, const PassedScales* passed)
      : layout_(layout), bucket_(bucket), dtype_(dtype), measure_(measure), passed_(passed) {}

  Scale of(const Group& group, Share share) const {
    const Piece& piece = layout_.pieces()[group.first];
    if (const std::optional<Scale> known = known_scale(piece, passed_)) return *known;
    return measured(bucket_.address(piece), dtype_, group.size, measure_, share.threads);
  }

 private:
  const Layout& layout_;
  const Bucket& bucket_;
  DType dtype_;
  Measure measure_;
  const PassedScales* passed_;
};

// Calls f(scale, group, share) for all groups: measured first, so that a group that fits the cache is read from memory
// once. A group that is a large part of the bucket is shared by all threads; the others are given out whole, since each
// sharing costs two meetings of the threads. Parts are below `threads`. f must not throw.
template <class Source, class F>
void for_each_scaled_group(const Layout& layout, Source& source, int64_t threads, const F& f) {
  // Parts of whole groups differ by one of them at the most: by a sixteenth of a thread's work.
  const int64_t large = layout.size() / (16 * threads);
  std::vector<Group> small;
  int64_t small_elements = 0;
  for_each_group(layout, [&](const Group& group) {
    if (parts_for(group.size, threads) == 1 || group.size < large) {
      small.push_back(group);
      small_elements += group.size;
      return;
    }
    const FloatEnvironment environment;
    const Share share{0, threads};
    f(source.of(group, share), group, share);
  });
  const int64_t parts = parts_for(small_elements, threads);
  std::vector<size_t> bounds{0};
  int64_t elements = 0;
  for (size_t i = 0; i < small.size(); ++i) {
    elements += small[i].size;
    const auto full = static_cast<int64_t>(bounds.size());
    if (full < parts && elements >= small_elements / parts * full) bounds.push_back(i + 1);
  }
  bounds.push_back(small.size());
  parallel(static_cast<int64_t>(bounds.size()) - 1, [&](int64_t part) {
    const Share share{part, 1};
    for (size_t i = bounds[static_cast<size_t>(part)]; i < bounds[static_cast<size_t>(part) + 1]; ++i) {
      f(source.of(small[i], share), small[i], share);
    }
  });
}

Draw draw_of(const DrawBase& base, const Piece& piece) {
  return Draw{base.seed, base.offset, base.layer + static_cast<uint32_t>(piece.layer)};
}

Draw second_draw_of(const DrawBase& base, const Piece& piece) {
  Draw draw = draw_of(base, piece);
  draw.layer |= kSecondHop;
  return draw;
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

// Messages of one layout, each with a weight, that are decoded and added.
class Sum {
 public:
  // `parts`: that may ask for terms side by side. Allocated here, where that may throw.
  Sum(std::vector<const uint8_t*> messages, std::vector<float> weights, int64_t parts)
      : messages_(std::move(messages)),
        weights_(std::move(weights)),
        payloads_(static_cast<size_t>(parts) * messages_.size()),
        worth_(payloads_.size()) {}

  // A piece from element `begin` on, until this part asks again. Nothing if one of the messages is poisoned there.
  std::optional<Terms> terms(int64_t part, const Piece& piece, int64_t begin) {
    const size_t count = messages_.size();
    const uint8_t** payloads = payloads_.data() + static_cast<size_t>(part) * count;
    float* worth = worth_.data() + static_cast<size_t>(part) * count;
    for (size_t i = 0; i < count; ++i) {
      payloads[i] = messages_[i] + piece.payload_at + payload_bytes(piece.packing, begin);
      const float scale = scale_at(i, piece);
      if (terngrad::is_poisoned(scale)) return std::nullopt;
      worth[i] = weights_[i] * scale;
    }
    return Terms{payloads, worth, static_cast<int64_t>(count)};
  }

  bool is_poisoned(const Piece& piece) const {
    for (size_t i = 0; i < messages_.size(); ++i) {
      if (terngrad::is_poisoned(scale_at(i, piece))) return true;
    }
    return false;
  }

 private:
  float scale_at(size_t message, const Piece& piece) const {
    return piece.packing == Packing::float32 ? 1.0f : load<float>(messages_[message] + piece.scale_at, 0);
  }

  std::vector<const uint8_t*> messages_;
  std::vector<float> weights_;
  std::vector<const uint8_t*> payloads_;
  std::vector<float> worth_;
};

// What becomes of the one message, or of the sum of several (which starts at +0).
enum class Into { written, summed, accumulated };

void decode_terms(const Layout& layout, const std::vector<const uint8_t*>& messages, const std::vector<float>& weights,
                  Into into, DType dtype, const Bucket& out) {
  const Kernels& kernel = kernels();
  const std::vector<Piece>& pieces = layout.pieces();
  const int64_t parts = parts_for(layout.size());
  Sum sum(messages, weights, parts);
  for_each_range(pieces, 0, pieces.size(), parts, [&](int64_t part, const Piece& piece, int64_t begin, int64_t end) {
    unsigned char* to = out.address(piece, begin);
    const std::optional<Terms> terms = sum.terms(part, piece, begin);
    if (!terms) {
      fill_nan(dtype, to, end - begin);
    } else if (into == Into::written) {
      kernel.decode(terms->payloads[0], piece.packing, end - begin, terms->worth[0], dtype, to);
    } else {
      kernel.decode_sum(*terms, piece.packing, end - begin, into == Into::summed, dtype, to);
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
  if (!is_ternary(packing)) throw ValueError("packing: expected 'two_bit' or 'base3'");
}

void check_encodable(const Layout& layout) {
  for (const Piece& piece : layout.pieces()) {
    if (is_counts(piece.packing)) throw ValueError("packing: counts are made by sum_trits alone");
  }
}

// Counts everywhere but in float32 layers, that hold so many workers.
void check_counts(const Layout& layout, int64_t workers) {
  for (const Piece& piece : layout.pieces()) {
    if (is_ternary(piece.packing)) throw ValueError("packing: expected counts for the result of sum_trits");
    if (is_counts(piece.packing) && workers > most_workers(piece.packing)) {
      throw ValueError("messages: " + std::to_string(workers) + " workers or more, but the counts hold " +
                       std::to_string(most_workers(piece.packing)));
    }
  }
}

// But for how trits are packed.
void check_same_pieces(const Layout& layout, const Layout& other, const char* argument) {
  const auto& a = layout.pieces();
  const auto& b = other.pieces();
  const bool same =
      a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin(), [](const Piece& p, const Piece& q) {
        const bool both = (p.packing == Packing::float32) == (q.packing == Packing::float32);
        return p.layer == q.layer && p.first == q.first && p.size == q.size && p.group == q.group && both;
      });
  if (!same) throw ValueError(std::string(argument) + ": its layout does not cut the same layers into the same pieces");
}

// Where each message begins: one array each, or one of all of them, back to back.
std::vector<const uint8_t*> starts_of(const Layout& layout, const Arrays& messages,
                                      const std::vector<double>& weights) {
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
  return starts;
}

int64_t messages_in(const Summand& summand) {
  const int64_t nbytes = summand.layout->nbytes();
  if (nbytes == 0 || summand.data.size % nbytes != 0 || summand.data.size == 0) {
    check_size(summand.data, nbytes);
    return 1;
  }
  return summand.data.size / nbytes;
}

// Trits under different scales do not add up: their sum is poisoned.
float common_scale(bool first, float common, float scale) {
  if (is_poisoned(scale) || !(first || bits_of(common) == bits_of(scale))) return float_of(kInfinity32);
  return scale;
}

void zero_gaps(const Layout& layout, const Array& data) {
  for (const auto& [begin, end] : layout.gaps()) memset(data.data + begin, 0, static_cast<size_t>(end - begin));
}

// The sum of messages as encode sees it: decoded a little at a time, once to be measured and once to be encoded.
class SummedSource {
 public:
  // `threads`: that may use it side by side.
  SummedSource(const Layout& layout, Sum sum, int64_t threads, Measure measure, const PassedScales* passed)
      : layout_(layout), sum_(std::move(sum)), measure_(measure), passed_(passed) {
    int64_t longest = 0;
    for_each_group(layout, [&](const Group& group) { longest = std::max(longest, group.size); });
    // One thread alone adds each stripe to its bin at once.
    if (!passed && threads > 1) stripes_.resize(static_cast<size_t>((longest + kStripe - 1) / kStripe));
    scratch_.resize(static_cast<size_t>(threads * kScratch));
  }

  const Sum& sum() const { return sum_; }

  Scale of(const Group& group, Share share) {
    if (const std::optional<Scale> known = known_scale(layout_.pieces()[group.first], passed_)) return *known;
    if (group.size == 0) return kEmpty;
    return scale_of(measured(group, share), group.size, measure_.clip, false);
  }

  // Calls f(at, n, x) for elements [begin, end) of a piece, in runs of at most kUnit that x holds. Poisoned ones are
  // NaN.
  template <class F>
  void for_each_run(int64_t part, const Piece& piece, int64_t begin, int64_t end, const F& f) {
    float* x = scratch_.data() + part * kScratch;
    for (int64_t at = begin; at < end; at += kUnit) {
      const int64_t n = std::min(kUnit, end - at);
      decode(part, piece, at, n, x);
      f(at, n, x);
    }
  }

 private:
  // A stripe, and the unit that completes it.
  static constexpr int64_t kScratch = kStripe + kUnit;
  // Elements that begin a stripe and a unit.
  static constexpr int64_t kBoth = 5 * kStripe;
  static_assert(kBoth % kUnit == 0, "a multiple of both");

  void decode(int64_t part, const Piece& piece, int64_t at, int64_t n, float* x) {
    const std::optional<Terms> terms = sum_.terms(part, piece, at);
    if (!terms) return std::fill(x, x + n, float_of(kNaN32));
    kernels().decode_sum(*terms, piece.packing, n, true, DType::float32, x);
    // The sign of a NaN that arithmetic made is the machine's; under passed scales trits would take it.
    for (int64_t i = 0; i < n; ++i) x[i] = x[i] == x[i] ? x[i] : float_of(kNaN32);
  }

  // Calls f(stripe, sums) for the stripes that elements [begin, end) of a group make; `begin` begins a stripe and a
  // unit.
  template <class F>
  void for_each_stripe(int64_t part, const Group& group, int64_t begin, int64_t end, const F& f) {
    float* x = scratch_.data() + part * kScratch;
    int64_t held = 0;
    int64_t stripe = begin / kStripe;
    StripeSums sums{};
    const auto take = [&](int64_t n) {
      sums.q[0] = 0.0;
      kernels().scales(x, DType::float32, n, 0, 1, false, &sums);
      f(stripe++, sums.q[0], sums.top);
      held -= n;
      std::copy(x + n, x + n + held, x);
    };
    int64_t before = 0;  // elements of the group's pieces so far
    for (size_t i = group.first; i < group.last; ++i) {
      const Piece& piece = layout_.pieces()[i];
      const int64_t last = std::min(piece.size, end - before);
      for (int64_t at = std::max<int64_t>(0, begin - before); at < last; at += kUnit) {
        const int64_t n = std::min(kUnit, last - at);
        decode(part, piece, at, n, x + held);
        held += n;
        if (held >= kStripe) take(kStripe);
      }
      before += piece.size;
    }
    if (held > 0) take(held);
  }

  // Each part takes stripes that lie side by side and leaves their sums; they go to their bins in order afterwards.
  Statistics measured(const Group& group, Share share) {
    const int64_t parts = parts_for(group.size, share.threads);
    const int64_t runs = (group.size + kBoth - 1) / kBoth;
    std::atomic<uint32_t> top{0};
    double* stripes = parts > 1 ? stripes_.data() : nullptr;
    StripeSums bins{};
    parallel(parts, [&](int64_t inner) {
      uint32_t part_top = 0;
      for_each_stripe(share.part + inner, group, runs * inner / parts * kBoth,
                      std::min(group.size, runs * (inner + 1) / parts * kBoth),
                      [&](int64_t stripe, double q, uint32_t stripe_top) {
                        if (stripes) {
                          stripes[stripe] = q;
                        } else {
                          bins.q[stripe % kBins] += q;
                        }
                        part_top = stripe_top;
                      });
      uint32_t seen = top.load();
      while (part_top > seen && !top.compare_exchange_weak(seen, part_top)) {
      }
    });
    for (int64_t stripe = 0; stripes && stripe * kStripe < group.size; ++stripe) {
      bins.q[stripe % kBins] += stripes[stripe];
    }
    bins.top = top.load();
    return fold(&bins);
  }

  const Layout& layout_;
  Sum sum_;
  Measure measure_;
  const PassedScales* passed_;
  std::vector<double> stripes_;
  std::vector<float> scratch_;
};

[[noreturn]] void corrupt(const std::string& what, int64_t byte) {
  throw CorruptError(what + " at byte " + std::to_string(byte) + " of the message");
}

// Only codes that exist or counts within +-workers, and 0 where the last byte's rows are not in use.
void validate_payload(const uint8_t* payload, const Piece& piece, int64_t workers) {
  const int64_t bytes = payload_bytes(piece.packing, piece.size);
  for (int64_t i = 0; i < bytes; ++i) {
    if (is_counts(piece.packing)) {
      if (!is_count_within(piece.packing, payload, i, workers)) {
        corrupt("a count beyond " + std::to_string(workers) + " workers", piece.payload_at + i);
      }
    } else if (!is_canonical(piece.packing, payload[i])) {
      corrupt("a code that does not exist", piece.payload_at + i);
    }
  }
  if (piece.packing == Packing::counts16) return;
  const int64_t rest = piece.size % tile_of(piece.packing);
  const int64_t columns = payload_bytes(piece.packing, rest);
  for (int64_t slot = rest; slot < columns * rows_of(piece.packing); ++slot) {
    const int64_t byte = bytes - columns + slot % columns;
    if (value_in(piece.packing, payload[byte], slot / columns) != 0) {
      corrupt("a code behind the last element", piece.payload_at + byte);
    }
  }
}

// Where a call runs. Its arrays are in one place; on a device it needs a queue.
int32_t device_of(const Queue* queue, const OnePlace& place) {
  if (place.device() != kHost && !queue) {
    throw ValueError("stream: expected one for arrays on CUDA device " + std::to_string(place.device()));
  }
  return place.device();
}

OnePlace placed(const Arrays& x, const PassedScales* passed) {
  OnePlace place;
  place.add(x);
  if (passed) place.add(passed->scale).add(passed->limit);
  return place;
}

// Seed and offset as arrays of their own, where they lie on a device.
Arrays words_of(const DrawBase& draw) {
  Arrays words;
  const auto add = [&](const char* name, const unsigned char* at, int32_t device) {
    if (at) words.push_back(Array{name, -1, const_cast<unsigned char*>(at), 2, Element::uint32, false, device});
  };
  add("seed", draw.seed_at, draw.seed_device);
  add("offset", draw.offset_at, draw.offset_device);
  return words;
}

bool all_zero(const uint8_t* bytes, int64_t count) {
  unsigned any = 0;
  for (int64_t i = 0; i < count; ++i) any |= bytes[i];
  return any == 0;
}

}  // namespace

void scales(const Layout& layout, const Arrays& x, Measure measure, const Array& scale, const Array& limit,
            const Queue* queue) {
  const DType dtype = check_inputs(layout, x);
  check_output(scale, Element::float32, layout.groups());
  check_output(limit, Element::float32, layout.groups());
  check_disjoint({scale, limit}, x);
  if (const int32_t on = device_of(queue, OnePlace().add(x).add(scale).add(limit)); on != kHost) {
    return cuda::scales(layout, x, dtype, measure, scale, limit, on, *queue);
  }
  const Bucket bucket(layout, x);
  const ScaleSource source(layout, bucket, dtype, measure, nullptr);
  for_each_scaled_group(layout, source, get_num_threads(), [&](Scale found, const Group& group, Share) {
    const int64_t index = layout.pieces()[group.first].group;
    store<float>(scale.data, index, found.scale);
    store<float>(limit.data, index, found.limit);
  });
}

void clip(const Layout& layout, const Arrays& x, Measure measure, const PassedScales* passed, const Arrays& out,
          const Queue* queue) {
  const DType dtype = check_inputs(layout, x);
  check_passed(layout, passed);
  check_outputs(layout, out, element_of(dtype));
  check_disjoint(out, x, true);
  if (passed) check_disjoint(out, {passed->limit});
  if (const int32_t on = device_of(queue, placed(x, passed).add(out)); on != kHost) {
    return cuda::clip(layout, x, dtype, measure, passed, out, on, *queue);
  }
  const Bucket from(layout, x);
  const Bucket to(layout, out);
  const Kernels& kernel = kernels();
  const std::vector<Piece>& pieces = layout.pieces();
  const auto clip_range = [&](float limit, const Piece& piece, int64_t begin, int64_t end) {
    kernel.clip(from.address(piece, begin), dtype, end - begin, limit, to.address(piece, begin));
  };
  if (!passed) {
    const ScaleSource source(layout, from, dtype, measure, nullptr);
    for_each_scaled_group(layout, source, get_num_threads(), [&](Scale found, const Group& group, Share share) {
      for_each_range(
          pieces, group.first, group.last, parts_for(group.size, share.threads),
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
               const Arrays& trits, const Array& scale, const Queue* queue) {
  const DType dtype = check_inputs(layout, x);
  check_passed(layout, passed);
  check_outputs(layout, trits, Element::int8);
  check_output(scale, Element::float32, layout.groups());
  Arrays outputs = trits;
  outputs.push_back(scale);
  check_disjoint(outputs, x);
  if (passed) check_disjoint(outputs, {passed->scale, passed->limit});
  if (const int32_t on = device_of(queue, placed(x, passed).add(outputs).add(words_of(draw))); on != kHost) {
    return cuda::ternarize(layout, x, dtype, measure, passed, draw, trits, scale, on, *queue);
  }
  const Bucket from(layout, x);
  const Bucket to(layout, trits);
  const Kernels& kernel = kernels();
  const std::vector<Piece>& pieces = layout.pieces();
  const ScaleSource source(layout, from, dtype, measure, passed);
  for_each_scaled_group(layout, source, get_num_threads(), [&](Scale found, const Group& group, Share share) {
    store<float>(scale.data, pieces[group.first].group, found.scale);
    for_each_range(pieces, group.first, group.last, parts_for(group.size, share.threads),
                   [&](int64_t, const Piece& piece, int64_t begin, int64_t end) {
                     kernel.ternarize(from.address(piece, begin), dtype, end - begin, piece.first + begin,
                                      draw_of(draw, piece), quantiser_of(found),
                                      reinterpret_cast<int8_t*>(to.address(piece, begin)));
                   });
  });
}

void encode(const Layout& layout, const Arrays& x, Measure measure, const PassedScales* passed, DrawBase draw,
            const Array& data, const Queue* queue) {
  const DType dtype = check_inputs(layout, x);
  check_encodable(layout);
  check_passed(layout, passed);
  check_output(data, Element::uint8, layout.nbytes());
  check_disjoint({data}, x);
  if (passed) check_disjoint({data}, {passed->scale, passed->limit});
  if (const int32_t on = device_of(queue, placed(x, passed).add(data).add(words_of(draw))); on != kHost) {
    return cuda::encode(layout, x, dtype, measure, passed, draw, data, on, *queue);
  }
  const Bucket bucket(layout, x);
  const Kernels& kernel = kernels();
  const std::vector<Piece>& pieces = layout.pieces();
  const ScaleSource source(layout, bucket, dtype, measure, passed);
  zero_gaps(layout, data);
  for_each_scaled_group(layout, source, get_num_threads(), [&](Scale found, const Group& group, Share share) {
    for (size_t i = group.first; i < group.last; ++i) store<float>(data.data + pieces[i].scale_at, 0, found.scale);
    for_each_range(pieces, group.first, group.last, parts_for(group.size, share.threads),
                   [&](int64_t, const Piece& piece, int64_t begin, int64_t end) {
                     kernel.encode(bucket.address(piece, begin), dtype, end - begin, piece.first + begin,
                                   draw_of(draw, piece), quantiser_of(found), piece.packing,
                                   data.data + piece.payload_at + payload_bytes(piece.packing, begin));
                   });
  });
}

void decode(const Layout& layout, const Array& data, double weight, bool accumulate, const Arrays& out,
            const Queue* queue) {
  check_element(data, Element::uint8);
  check_size(data, layout.nbytes());
  const DType dtype = check_decoded(layout, {data}, out);
  const Into into = accumulate ? Into::accumulated : Into::written;
  if (const int32_t on = device_of(queue, OnePlace().add(data).add(out)); on != kHost) {
    return cuda::decode(layout, {data.data}, rounded_weights({weight}), into == Into::accumulated, false, dtype, out,
                        on, *queue);
  }
  decode_terms(layout, {data.data}, rounded_weights({weight}), into, dtype, Bucket(layout, out));
}

void decode_sum(const Layout& layout, const Arrays& messages, const std::vector<double>& weights, const Arrays& out,
                const Queue* queue) {
  const std::vector<const uint8_t*> starts = starts_of(layout, messages, weights);
  const DType dtype = check_decoded(layout, messages, out);
  if (const int32_t on = device_of(queue, OnePlace().add(messages).add(out)); on != kHost) {
    return cuda::decode(layout, starts, rounded_weights(weights), true, true, dtype, out, on, *queue);
  }
  decode_terms(layout, starts, rounded_weights(weights), Into::summed, dtype, Bucket(layout, out));
}

void repack(const Layout& layout, const Arrays& messages, const std::vector<double>& weights, Measure measure,
            const PassedScales* passed, DrawBase draw, const Layout& result, const Array& data, const Queue* queue) {
  const std::vector<const uint8_t*> starts = starts_of(layout, messages, weights);
  check_same_pieces(layout, result, "packing");
  check_encodable(result);
  check_passed(layout, passed);
  check_output(data, Element::uint8, result.nbytes());
  check_disjoint({data}, messages);
  if (passed) check_disjoint({data}, {passed->scale, passed->limit});
  if (const int32_t on = device_of(queue, placed(messages, passed).add(data).add(words_of(draw))); on != kHost) {
    return cuda::repack(layout, starts, rounded_weights(weights), measure, passed, draw, result, data, on, *queue);
  }
  const Kernels& kernel = kernels();
  const std::vector<Piece>& pieces = layout.pieces();
  const int64_t threads = get_num_threads();
  SummedSource source(layout, Sum(starts, rounded_weights(weights), threads), threads, measure, passed);
  zero_gaps(result, data);
  for_each_scaled_group(layout, source, threads, [&](Scale found, const Group& group, Share share) {
    for (size_t i = group.first; i < group.last; ++i) {
      const float scale = source.sum().is_poisoned(pieces[i]) ? float_of(kInfinity32) : found.scale;
      store<float>(data.data + result.pieces()[i].scale_at, 0, scale);
    }
    // One of the two numbers of a part is 0.
    for_each_range(pieces, group.first, group.last, parts_for(group.size, share.threads),
                   [&](int64_t inner, const Piece& piece, int64_t begin, int64_t end) {
                     const Piece& target = result.pieces()[static_cast<size_t>(&piece - pieces.data())];
                     const Draw bits = second_draw_of(draw, piece);
                     const bool poisoned = source.sum().is_poisoned(piece);
                     const Quantiser quantiser = quantiser_of(poisoned ? poisoned_scale() : found);
                     source.for_each_run(share.part + inner, piece, begin, end, [&](int64_t at, int64_t n, float* x) {
                       kernel.encode(x, DType::float32, n, piece.first + at, bits, quantiser, target.packing,
                                     data.data + target.payload_at + payload_bytes(target.packing, at));
                     });
                   });
  });
}

void sum_trits(const std::vector<Summand>& summands, const Layout& result, const Array& data, const Queue* queue) {
  int64_t workers = 0;
  int64_t count = 0;
  Arrays inputs;
  for (const Summand& summand : summands) {
    check_element(summand.data, Element::uint8);
    const int64_t messages = messages_in(summand);
    check_same_pieces(*summand.layout, result, summand.data.name().c_str());
    if (summand.workers < 1 || summand.workers > most_workers(Packing::counts16)) {
      throw ValueError(summand.data.name() + ": expected 1 to 32767 workers, got " + std::to_string(summand.workers));
    }
    workers += std::min(messages, most_workers(Packing::counts16) + 1) * summand.workers;
    count += messages;
    inputs.push_back(summand.data);
  }
  check_counts(result, workers);
  check_output(data, Element::uint8, result.nbytes());
  check_disjoint({data}, inputs);

  // The start and the layout of each message.
  std::vector<const uint8_t*> starts;
  std::vector<const Layout*> layouts;
  for (const Summand& summand : summands) {
    const int64_t messages = messages_in(summand);
    for (int64_t i = 0; i < messages; ++i) {
      starts.push_back(summand.data.data + i * summand.layout->nbytes());
      layouts.push_back(summand.layout);
    }
  }
  if (const int32_t on = device_of(queue, OnePlace().add(inputs).add(data)); on != kHost) {
    return cuda::sum_trits(starts, layouts, result, data, on, *queue);
  }
  const int64_t parts = parts_for(result.size());
  const auto total = static_cast<size_t>(count);
  std::vector<const uint8_t*> all_payloads(static_cast<size_t>(parts) * total);
  std::vector<Packing> all_packings(all_payloads.size());
  const std::vector<float> ones(total, 1.0f);
  const Kernels& kernel = kernels();
  zero_gaps(result, data);
  for_each_range(result.pieces(), 0, result.pieces().size(), parts,
                 [&](int64_t part, const Piece& piece, int64_t begin, int64_t end) {
                   const auto index = static_cast<size_t>(&piece - result.pieces().data());
                   const uint8_t** payloads = all_payloads.data() + static_cast<size_t>(part) * total;
                   Packing* packings = all_packings.data() + static_cast<size_t>(part) * total;
                   float scale = 1.0f;
                   for (size_t i = 0; i < total; ++i) {
                     const Piece& from = layouts[i]->pieces()[index];
                     packings[i] = from.packing;
                     payloads[i] = starts[i] + from.payload_at + payload_bytes(from.packing, begin);
                     if (piece.packing == Packing::float32) continue;
                     scale = common_scale(i == 0, scale, load<float>(starts[i] + from.scale_at, 0));
                   }
                   if (begin == 0) store<float>(data.data + piece.scale_at, 0, scale == 0.0f ? 0.0f : scale);
                   uint8_t* to = data.data + piece.payload_at + payload_bytes(piece.packing, begin);
                   if (piece.packing == Packing::float32) {
                     kernel.decode_sum(Terms{payloads, ones.data(), count}, Packing::float32, end - begin, true,
                                       DType::float32, to);
                   } else if (scale == 0.0f || is_poisoned(scale)) {
                     memset(to, 0, static_cast<size_t>(payload_bytes(piece.packing, end - begin)));
                   } else {
                     kernel.sum_trits(Addends{payloads, packings, count}, end - begin, piece.packing, to);
                   }
                 });
}

void pack(const Array& trits, Packing packing, const Array& out, const Queue* queue) {
  check_packing(packing);
  check_element(trits, Element::int8);
  check_output(out, Element::uint8, payload_bytes(packing, trits.size));
  check_disjoint({out}, {trits});
  if (const int32_t on = device_of(queue, OnePlace().add(trits).add(out)); on != kHost) {
    return cuda::pack(trits, packing, out, on, *queue);
  }
  parallel(
      1, [&](int64_t) { kernels().pack(reinterpret_cast<const int8_t*>(trits.data), trits.size, packing, out.data); });
}

void unpack(const Array& payload, Packing packing, const Array& out, const Queue* queue) {
  check_packing(packing);
  check_element(payload, Element::uint8);
  check_output(out, Element::int8, out.size);
  check_size(payload, payload_bytes(packing, out.size));
  check_disjoint({out}, {payload});
  if (const int32_t on = device_of(queue, OnePlace().add(payload).add(out)); on != kHost) {
    return cuda::unpack(payload, packing, out, on, *queue);
  }
  parallel(1, [&](int64_t) { kernels().unpack(payload.data, out.size, packing, reinterpret_cast<int8_t*>(out.data)); });
}

void validate(const Layout& layout, const Array& data, int64_t workers, const Queue* queue) {
  check_element(data, Element::uint8);
  if (data.size != layout.nbytes()) {
    throw CorruptError("expected " + std::to_string(layout.nbytes()) + " bytes, got " + std::to_string(data.size));
  }
  if (const int32_t on = device_of(queue, OnePlace().add(data)); on != kHost) {
    return cuda::validate(layout, data, workers, on, *queue);
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
      validate_payload(payload, piece, workers);
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
