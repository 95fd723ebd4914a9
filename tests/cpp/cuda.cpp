// Every operation with the kernels for CUDA devices, run on the host (cuda_emulation/), against the scalar kernels, bit
// by bit: through the runtime, as all callers go. Arrays lie between guard pages, scratch is as long as was asked for.
//
//   test_cuda [ROUNDS] [FIRST]     TERNGRAD_EMULATED_ORDER: blocks in another order (cuda_emulation/fibers.h)
#include <functional>
#include <memory>
#include <string>

#include "../../csrc/runtime/cuda.h"
#include "../../csrc/runtime/dispatch.h"
#include "../../csrc/runtime/errors.h"
#include "../../csrc/runtime/operations.h"
#include "support.h"

namespace terngrad {

#if defined(TERNGRAD_PTX)
namespace cuda {
void set_emulated_memory(const void* at, int64_t bytes, bool written);
}
#endif

namespace tests {
namespace {

// Memory of its own for each array of a call, at an address of its element's alignment and no more.
class Memory {
 public:
  Memory(int32_t device, uint64_t seed) : device_(device), random_(seed) {}
#if defined(TERNGRAD_PTX)
  ~Memory() {
    if (scratch_.size > 0) cuda::set_emulated_memory(scratch_.data, scratch_.size, true);
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
#endif

  Array array(const char* name, Element element, const Bytes& content, bool writable) {
    const auto bytes = static_cast<int64_t>(content.size());
    pages_.push_back(std::make_unique<Pages>(bytes));
    const int64_t size = bytes_of(element);
    const int64_t offset = random_.below(2) == 0 ? 0 : size * random_.below(64 / size);
    unsigned char* at = Place{offset, random_.below(2) == 0}.in(*pages_.back(), bytes);
    if (bytes > 0) memcpy(at, content.data(), content.size());
    set_canaries(*pages_.back(), at, bytes);
    arrays_.push_back(Array{name, -1, at, bytes / size, element, writable, device_});
    return arrays_.back();
  }

  Arrays list(const char* name, Element element, const std::vector<Bytes>& contents, bool writable) {
    Arrays arrays;
    for (const Bytes& content : contents) {
      arrays.push_back(array(name, element, content, writable));
      arrays.back().place = static_cast<int64_t>(arrays.size()) - 1;
    }
    return arrays;
  }

  // What the call asked for, to the byte, at a multiple of 16.
  Queue queue(int64_t bytes) {
    pages_.push_back(std::make_unique<Pages>(bytes));
    const int64_t rounded = (bytes + 15) / 16 * 16;
    unsigned char* at = pages_.back()->end() - rounded;
    memset(at, 0xAA, static_cast<size_t>(bytes));
    scratch_ = Array{"scratch", -1, at, bytes, Element::uint8, true, device_};
#if defined(TERNGRAD_PTX)
    cuda::set_emulated_memory(at, bytes, false);
#endif
    return Queue{nullptr, scratch_};
  }

  // All that was written.
  Bytes outputs() const {
    Bytes all;
    for (const Array& array : arrays_) {
      if (array.writable && array.size > 0) all.insert(all.end(), array.data, array.data + array.nbytes());
    }
    return all;
  }

  bool is_sound() const {
    size_t page = 0;
    for (const Array& array : arrays_) {
      while (!contains(*pages_[page], array)) ++page;
      if (!canaries_live(*pages_[page], array.data, array.nbytes())) return false;
    }
    return true;
  }

  int32_t device() const { return device_; }

 private:
  static bool contains(const Pages& pages, const Array& array) {
    return array.data >= pages.begin() && array.data <= pages.end();
  }

  int32_t device_;
  Random random_;
  std::vector<std::unique_ptr<Pages>> pages_;
  std::vector<Array> arrays_;
  Array scratch_{};
};

// NaNs that arithmetic makes are any; elsewhere all bits count.
bool same(const Bytes& a, const Bytes& b, DType floats) {
  if (a.size() != b.size()) return false;
  if (a == b) return true;
  const int64_t size = size_of(floats);
  for (int64_t i = 0; i < static_cast<int64_t>(a.size()) / size; ++i) {
    if (memcmp(a.data() + i * size, b.data() + i * size, static_cast<size_t>(size)) == 0) continue;
    const bool nans = floats == DType::float64 ? isnan(load<double>(a.data(), i)) && isnan(load<double>(b.data(), i))
                                               : floats == DType::float32 && is_nan(load<float>(a.data(), i)) &&
                                                     is_nan(load<float>(b.data(), i));
    if (!nans) return false;
  }
  return true;
}

using Run = std::function<void(Memory& memory)>;

// Runs it on the host and on the device; what is thrown counts as a result.
void compare(const std::string& what, DType floats, uint64_t seed, const Run& run) {
  Bytes found[2];
  std::string thrown[2];
  for (int i = 0; i < 2; ++i) {
    Memory memory(i == 0 ? kHost : 0, seed);
    try {
      run(memory);
    } catch (const std::exception& error) {
      thrown[i] = error.what();
    }
    found[i] = memory.outputs();
    if (!memory.is_sound()) fail("%s: wrote beside its output on %s", what.c_str(), i == 0 ? "the host" : "the device");
  }
  ++checks;
  if (thrown[0] != thrown[1]) {
    fail("%s: the host said '%s', the device '%s'", what.c_str(), thrown[0].c_str(), thrown[1].c_str());
  } else if (!same(found[0], found[1], floats)) {
    size_t at = 0;
    while (at < found[0].size() && found[0][at] == found[1][at]) ++at;
    fail("%s: byte %zu of %zu is %02x, on the host %02x", what.c_str(), at, found[0].size(), found[1][at],
         found[0][at]);
  }
}

// Mostly ordinary values, now and then zeros, subnormals, infinities, NaNs of either sign.
Bytes values(DType dtype, int64_t n, bool special, Random& random) {
  Bytes bytes(static_cast<size_t>(n * size_of(dtype)));
  for (int64_t i = 0; i < n; ++i) {
    const auto magnitude = static_cast<double>(random.below(1 << 20)) / (1 << 20);
    float x = static_cast<float>(random.below(2) ? magnitude : -magnitude);
    if (special && random.below(500) == 0) {
      const uint32_t odd[] = {0u, 0x80000000u, 1u, 0x7f800000u, 0xff800000u, 0x7fc00001u, 0xffa00000u, 0x7f7fffffu};
      x = float_of(odd[random.below(8)]);
    }
    switch (dtype) {
      case DType::float32: store<float>(bytes.data(), i, x); break;
      case DType::float16: {
        Half narrowed;
        narrow(x, &narrowed);
        if (is_nan(x)) narrowed.bits = static_cast<uint16_t>(narrowed.bits | (bits_of(x) >> 16 & 0x8000u));
        store<Half>(bytes.data(), i, narrowed);
        break;
      }
      case DType::bfloat16: store<BFloat16>(bytes.data(), i, BFloat16{static_cast<uint16_t>(bits_of(x) >> 16)}); break;
      case DType::float64: store<double>(bytes.data(), i, x); break;
    }
  }
  return bytes;
}

Bytes random_bytes(int64_t n, Random& random) {
  Bytes bytes(static_cast<size_t>(n));
  for (unsigned char& byte : bytes) byte = static_cast<unsigned char>(random.bits());
  return bytes;
}

// Around the edges of columns, rows, tiles of every packing, units, stripes, and what a block takes.
int64_t some_size(Random& random) {
  constexpr int64_t edges[] = {0,   1,    4,     64,        128,     256,       512,
                               640, 1280, kUnit, 2 * kUnit, kStripe, 8 * kUnit, 2 * kStripe};
  const int64_t edge = edges[random.below(14)];
  return std::max<int64_t>(0, edge + random.below(7) - 3) + (random.below(4) == 0 ? random.below(3000) : 0);
}

struct Bucket {
  std::vector<int64_t> sizes;
  std::vector<Packing> packings;
  int64_t block;
  int64_t shards;
  int64_t index;

  Layout layout() const { return Layout(sizes, packings, block, shards, index); }
  Layout counts(Packing packing) const {
    std::vector<Packing> all = packings;
    for (Packing& one : all) one = one == Packing::float32 ? one : packing;
    return Layout(sizes, all, block, shards, index);
  }
};

Bucket some_bucket(uint64_t seed, Random& random) {
  Bucket bucket{{}, {}, 0, 1, -1};
  const int64_t layers = random.below(20) == 0 ? 230 : 1 + random.below(6);
  const Packing forms[] = {Packing::two_bit, Packing::base3, Packing::two_bit, Packing::base3, Packing::float32};
  for (int64_t i = 0; i < layers; ++i) {
    bucket.sizes.push_back(layers > 100 ? random.below(40) : some_size(random));
    bucket.packings.push_back(forms[random.below(5)]);
  }
  if (random.below(20) == 0)
    bucket.sizes[0] = 8 * kStripe + 1 + random.below(2 * kStripe);                       // blocks that share a group
  if (seed % 50 == 20) bucket.sizes[0] = (kBins + 1) * kStripe + random.below(kStripe);  // a bin has two stripes
  if (random.below(3) == 0) bucket.block = kUnit * (1 + random.below(5));
  if (random.below(3) == 0) {
    bucket.shards = 2 + random.below(4);
    if (random.below(2) == 0) bucket.index = random.below(bucket.shards);
  }
  return bucket;
}

class Round {
 public:
  explicit Round(uint64_t seed)
      : random_(seed), seed_(seed), bucket_(some_bucket(seed, random_)), layout_(bucket_.layout()) {}

  void run() {
    dtype_ = kDTypes[random_.below(4)];
    flat_ = layout_.is_shard() || random_.below(2) == 0;
    special_ = random_.below(3) == 0;
    about_ = "round " + std::to_string(seed_) + ", " + name_of(dtype_) + (flat_ ? ", flat, " : ", list, ") +
             std::to_string(bucket_.sizes.size()) + " layers, the first of " +
             std::to_string(bucket_.sizes.empty() ? 0 : bucket_.sizes[0]) + ": ";
    x_ = parts(values(dtype_, layout_.size(), special_, random_), size_of(dtype_));
    passed_ = {random_scales(), random_scales()};
    for (const bool with_passed : {false, true}) {
      encode_and_others(with_passed);
      repack_all(with_passed);
    }
    decode_all();
    sum_all();
    payloads();
  }

 private:
  std::vector<Bytes> parts(const Bytes& all, int64_t bytes) const {
    if (flat_) return {all};
    std::vector<Bytes> each;
    auto at = all.begin();
    for (const int64_t size : layout_.sizes()) {
      each.emplace_back(at, at + size * bytes);
      at += size * bytes;
    }
    return each;
  }

  Bytes random_scales() {
    Bytes bytes(static_cast<size_t>(4 * layout_.groups()));
    for (int64_t i = 0; i < layout_.groups(); ++i) {
      const float odd[] = {0.0f, -1.0f, float_of(kInfinity32), float_of(kNaN32), 0x1p-60f, 1e-30f};
      const float plain = static_cast<float>(1 + random_.below(1000)) / 700.0f;
      store<float>(bytes.data(), i, random_.below(6) == 0 ? odd[random_.below(6)] : plain);
    }
    return bytes;
  }

  // A message of the layout that is well-formed for the most part, or anything.
  Bytes message(const Layout& layout) {
    Bytes bytes = random_bytes(layout.nbytes(), random_);
    const bool anything = random_.below(3) == 0;
    for (const Piece& piece : layout.pieces()) {
      float scale = static_cast<float>(1 + random_.below(1000)) / 700.0f;
      if (random_.below(8) == 0) scale = random_.below(2) == 0 ? float_of(kInfinity32) : 0x1.8p127f;
      if (!anything) store<float>(bytes.data() + piece.scale_at, 0, scale);
    }
    return bytes;
  }

  // f(queue) with what the call may need.
  template <class F>
  void with_queue(Memory& memory, bool measured, size_t arrays, const F& f) const {
    with_queue_of(layout_, memory, measured, arrays, f);
  }
  template <class F>
  void with_queue_of(const Layout& layout, Memory& memory, bool measured, size_t arrays, const F& f) const {
    if (memory.device() == kHost) return f(nullptr);
    const Queue queue = memory.queue(scratch_bytes(layout, measured, static_cast<int64_t>(arrays)));
    f(&queue);
  }

  DrawBase draw(Memory& memory) const {
    DrawBase base{seed_ * 0x9E3779B97F4A7C15u, seed_ << 33, static_cast<uint32_t>(seed_ % 1000)};
    if (memory.device() != kHost && seed_ % 2 == 0) {
      Bytes bytes(8);
      memcpy(bytes.data(), &base.seed, 8);
      base.seed_at = memory.array("seed", Element::uint32, bytes, false).data;
      memcpy(bytes.data(), &base.offset, 8);
      base.offset_at = memory.array("offset", Element::uint32, bytes, false).data;
      base.seed_device = base.offset_device = 0;
      base.seed = base.offset = 0;
    }
    return base;
  }

  void encode_and_others(bool with_passed) {
    const double clips[] = {0.0, 2.5, 0.01, 1e-25};  // the last leaves nearly all values beyond what a code can say
    const Measure measure{clips[random_.below(4)], false};
    const Measure centered{2.5, random_.below(2) == 0};
    const std::string rest = with_passed ? " with passed scales" : "";
    const auto scales_in = [&](Memory& memory) {
      return PassedScales{memory.array("scales.scale", Element::float32, passed_[0], false),
                          memory.array("scales.limit", Element::float32, passed_[1], false)};
    };
    const size_t count = x_.size();
    for (const bool at_once : {false, true}) {
      if (at_once && with_passed) break;
      cuda::set_at_once(at_once);
      compare(about_ + "encode" + rest + (at_once ? " at once" : ""), DType::float16, seed_, [&](Memory& memory) {
        const Arrays x = memory.list("x", element_of_dtype(), x_, false);
        const PassedScales passed = scales_in(memory);
        const DrawBase base = draw(memory);
        const Bytes before(static_cast<size_t>(layout_.nbytes()), 0xAA);
        const Array data = memory.array("out", Element::uint8, before, true);
        with_queue(memory, !with_passed, count, [&](const Queue* queue) {
          encode(layout_, x, measure, with_passed ? &passed : nullptr, base, data, queue);
        });
      });
    }
    cuda::set_at_once(false);
    compare(about_ + "ternarize" + rest, DType::float16, seed_, [&](Memory& memory) {
      const Arrays x = memory.list("x", element_of_dtype(), x_, false);
      const PassedScales passed = scales_in(memory);
      const DrawBase base = draw(memory);
      const Arrays trits = memory.list("out", Element::int8, empties(1), true);
      const Array scale =
          memory.array("scale", Element::float32, Bytes(static_cast<size_t>(4 * layout_.groups())), true);
      with_queue(memory, !with_passed, 2 * count, [&](const Queue* queue) {
        ternarize(layout_, x, measure, with_passed ? &passed : nullptr, base, trits, scale, queue);
      });
    });
    const bool in_place = random_.below(2) == 0;
    compare(about_ + "clip" + rest, dtype_, seed_, [&](Memory& memory) {
      const Arrays x = memory.list("x", element_of_dtype(), x_, true);
      const PassedScales passed = scales_in(memory);
      const Arrays out = in_place ? x : memory.list("out", element_of_dtype(), empties(size_of(dtype_)), true);
      with_queue(memory, !with_passed, 2 * count,
                 [&](const Queue* queue) { clip(layout_, x, centered, with_passed ? &passed : nullptr, out, queue); });
    });
    if (with_passed) return;
    compare(about_ + "scales", DType::float16, seed_, [&](Memory& memory) {
      const Arrays x = memory.list("x", element_of_dtype(), x_, false);
      const Bytes empty(static_cast<size_t>(4 * layout_.groups()));
      const Array scale = memory.array("scale", Element::float32, empty, true);
      const Array limit = memory.array("limit", Element::float32, empty, true);
      with_queue(memory, true, count, [&](const Queue* queue) { scales(layout_, x, centered, scale, limit, queue); });
    });
  }

  Element element_of_dtype() const { return static_cast<Element>(dtype_); }

  std::vector<Bytes> empties(int64_t bytes) const {
    return parts(Bytes(static_cast<size_t>(layout_.size() * bytes), 0x55), bytes);
  }

  void decode_all() {
    // Trits, or counts of any width.
    const int64_t form = random_.below(4);
    const Layout layout = form == 0 ? layout_ : bucket_.counts(kCounts[form - 1]);
    const Bytes one = message(layout);
    const double weight = random_.below(2) == 0 ? 1.0 : -0.3;
    const std::vector<Bytes> before = parts(values(dtype_, layout_.size(), special_, random_), size_of(dtype_));
    for (const bool accumulate : {false, true}) {
      compare(about_ + (accumulate ? "accumulate" : "decode"), dtype_, seed_, [&](Memory& memory) {
        const Array data = memory.array("packed.data", Element::uint8, one, false);
        const Arrays out = memory.list("out", element_of_dtype(), before, true);
        with_queue(memory, false, before.size() + 1,
                   [&](const Queue* queue) { decode(layout, data, weight, accumulate, out, queue); });
      });
    }
    const int64_t workers = random_.below(20) == 0 ? 200 : 1 + random_.below(5);
    std::vector<Bytes> messages;
    std::vector<double> weights;
    for (int64_t i = 0; i < workers; ++i) {
      messages.push_back(message(layout));
      weights.push_back(static_cast<double>(random_.below(7)) / 3 - 1);
    }
    compare(about_ + "decode_sum of " + std::to_string(workers), dtype_, seed_, [&](Memory& memory) {
      const Arrays data = memory.list("messages", Element::uint8, messages, false);
      const Arrays out = memory.list("out", element_of_dtype(), before, true);
      with_queue(memory, false, before.size() + messages.size(),
                 [&](const Queue* queue) { decode_sum(layout, data, weights, out, queue); });
    });
  }

  void repack_all(bool with_passed) {
    const int64_t form = random_.below(3);
    const Layout layout = form == 0 ? layout_ : bucket_.counts(kCounts[form]);
    const Layout result = bucket_.counts(kTernary[random_.below(2)]);
    std::vector<Bytes> messages;
    std::vector<double> weights;
    for (int64_t i = 0; i < 1 + random_.below(3); ++i) {
      messages.push_back(message(layout));
      weights.push_back(random_.below(3) == 0 ? -0.4 : 1.0);
    }
    compare(about_ + "repack" + (with_passed ? " with passed scales" : ""), DType::float32, seed_, [&](Memory& memory) {
      const Arrays data = memory.list("messages", Element::uint8, messages, false);
      const PassedScales passed{memory.array("scales.scale", Element::float32, passed_[0], false),
                                memory.array("scales.limit", Element::float32, passed_[1], false)};
      const DrawBase base = draw(memory);
      const Array out = memory.array("out", Element::uint8, Bytes(static_cast<size_t>(result.nbytes()), 0xAA), true);
      with_queue(memory, !with_passed, messages.size(), [&](const Queue* queue) {
        repack(layout, data, weights, Measure{0.0, false}, with_passed ? &passed : nullptr, base, result, out, queue);
      });
    });
  }

  void sum_all() {
    std::vector<Layout> layouts = {layout_,
                                   bucket_.counts(Packing::two_bit),
                                   bucket_.counts(Packing::base3),
                                   bucket_.counts(Packing::counts4),
                                   bucket_.counts(Packing::counts8),
                                   bucket_.counts(Packing::counts16)};
    const Packing packing = kCounts[random_.below(3)];
    const Layout result = bucket_.counts(packing);
    const int64_t workers = 1 + random_.below(most_workers(packing) < 10 ? 7 : random_.below(15) == 0 ? 127 : 6);
    std::vector<const Layout*> of;
    std::vector<Bytes> messages;
    for (int64_t i = 0; i < workers; ++i) {
      of.push_back(&layouts[static_cast<size_t>(random_.below(workers > 7 ? 3 : 6))]);
      messages.push_back(message(*of.back()));
      for (size_t k = 0; k < result.pieces().size(); ++k) {  // shared scales, for the most part
        if (random_.below(10) == 0) continue;
        store<float>(messages.back().data() + of.back()->pieces()[k].scale_at, 0, k % 7 == 3 ? -0.0f : 0.5f);
      }
    }
    compare(about_ + "sum_trits of " + std::to_string(workers) + " to " + name_of(packing), DType::float32, seed_,
            [&](Memory& memory) {
              const Arrays data = memory.list("messages", Element::uint8, messages, false);
              std::vector<Summand> summands;
              for (size_t i = 0; i < data.size(); ++i) summands.push_back(Summand{of[i], data[i], 1});
              const Array out =
                  memory.array("out", Element::uint8, Bytes(static_cast<size_t>(result.nbytes()), 0xAA), true);
              with_queue_of(result, memory, false, data.size(),
                            [&](const Queue* queue) { sum_trits(summands, result, out, queue); });
            });
    check_validate(layouts[static_cast<size_t>(random_.below(6))]);
  }

  // Of what an encoder wrote, then with one byte of it changed.
  void check_validate(const Layout& layout) {
    Bytes sound(static_cast<size_t>(layout.nbytes()), 0);
    for (const Piece& piece : layout.pieces()) store<float>(sound.data() + piece.scale_at, 0, 1.0f);
    for (int i = 0; i < 3; ++i) {
      Bytes changed = sound;
      if (i > 0 && !changed.empty()) {
        changed[static_cast<size_t>(random_.below(layout.nbytes()))] = static_cast<unsigned char>(random_.bits());
      }
      const int64_t workers = 1 + random_.below(9);
      compare(about_ + "validate", DType::float16, seed_, [&](Memory& memory) {
        const Array data = memory.array("packed.data", Element::uint8, changed, false);
        with_queue_of(layout, memory, true, 1, [&](const Queue* queue) { validate(layout, data, workers, queue); });
      });
    }
  }

  void payloads() {
    const int64_t n = some_size(random_) + (random_.below(4) == 0 ? 9 * kUnit : 0);
    for (const Packing packing : kTernary) {
      const Bytes trits = random_bytes(n, random_);
      const Bytes payload = random_bytes(payload_bytes(packing, n), random_);
      const std::string about = about_ + name_of(packing) + " of " + std::to_string(n);
      compare(about + ": pack", DType::float16, seed_, [&](Memory& memory) {
        const Array from = memory.array("trits", Element::int8, trits, false);
        const Array to = memory.array("out", Element::uint8, Bytes(payload.size(), 0xAA), true);
        with_queue(memory, false, 0, [&](const Queue* queue) { pack(from, packing, to, queue); });
      });
      compare(about + ": unpack", DType::float16, seed_, [&](Memory& memory) {
        const Array from = memory.array("payload", Element::uint8, payload, false);
        const Array to = memory.array("out", Element::int8, Bytes(trits.size(), 0xAA), true);
        with_queue(memory, false, 0, [&](const Queue* queue) { unpack(from, packing, to, queue); });
      });
    }
  }

  Random random_;
  uint64_t seed_;
  Bucket bucket_;
  Layout layout_;
  DType dtype_ = DType::float32;
  bool flat_ = false;
  bool special_ = false;
  std::string about_;
  std::vector<Bytes> x_;
  std::vector<Bytes> passed_;
};

}  // namespace
}  // namespace tests
}  // namespace terngrad

int main(int count, char** arguments) {
  using namespace terngrad;
  select_isa("scalar");
  const int rounds = count > 1 ? std::atoi(arguments[1]) : 100;
  const int first = count > 2 ? std::atoi(arguments[2]) : 1;
  for (int i = first; i < first + rounds; ++i) tests::Round(static_cast<uint64_t>(i)).run();
  return tests::report("test_cuda");
}
