// Every kernel of every instruction set that runs here against the scalar one, bit by bit.
//
//   test_kernels                     all lengths at the edges, all kinds of values: what CI runs
//   test_kernels alignments STEP     alignments 0..63 x every STEP-th length up to 4096
//   test_kernels exhaustive          all 2^32 float32 patterns (minutes)
#include <algorithm>
#include <functional>
#include <string>
#include <thread>

#include "../../csrc/runtime/dispatch.h"
#include "../../csrc/runtime/float_environment.h"
#include "operations.h"
#include "support.h"

namespace terngrad {
namespace tests {
namespace {

std::vector<const Kernels*> all_kernels() {
  std::vector<const Kernels*> found;
  for (const std::string& isa : runnable_isas()) {
    select_isa(isa);
    found.push_back(&kernels());
  }
  return found;
}

// ---- values

// plain: all of one magnitude, give or take 2^8. wide: any exponent but the topmost. any: any bits at all. edges:
// plain, and now and then a zero, a subnormal, a power of two, infinity, a quiet or signalling NaN.
enum class Kind { plain, wide, any, edges };
constexpr Kind kKinds[] = {Kind::plain, Kind::wide, Kind::any, Kind::edges};

uint64_t value_bits(Kind kind, DType dtype, Random& random) {
  const int width = static_cast<int>(8 * size_of(dtype));
  const int significand = dtype == DType::float32    ? 23
                          : dtype == DType::float16  ? 10
                          : dtype == DType::bfloat16 ? 7
                                                     : 52;
  const uint64_t fraction_mask = (uint64_t{1} << significand) - 1;
  const uint64_t exponents = uint64_t{1} << (width - 1 - significand);
  uint64_t bits = random.bits();
  uint64_t sign = bits & uint64_t{1} << (width - 1);
  uint64_t fraction = bits & fraction_mask;
  uint64_t exponent = exponents / 2 - 1 - static_cast<uint64_t>(random.below(8));
  if (kind == Kind::any) return width == 64 ? bits : bits & ((uint64_t{1} << width) - 1);
  if (kind == Kind::wide) exponent = static_cast<uint64_t>(random.below(static_cast<int64_t>(exponents - 1)));
  if (kind == Kind::edges && random.below(4) == 0) {
    const uint64_t edges[][2] = {{0, 0},
                                 {0, 1},
                                 {0, fraction_mask},
                                 {0, fraction},
                                 {1, 0},
                                 {exponent, 0},
                                 {exponents / 2 - 1, 0},
                                 {exponents - 2, fraction_mask},
                                 {exponents - 1, 0},
                                 {exponents - 1, 1},
                                 {exponents - 1, fraction_mask},
                                 {exponents - 1, fraction_mask / 2 + 1}};
    const uint64_t* edge = edges[random.below(12)];
    exponent = edge[0];
    fraction = edge[1];
  }
  return sign | exponent << significand | fraction;
}

Bytes values(Kind kind, DType dtype, int64_t n, Random& random) {
  const int64_t size = size_of(dtype);
  Bytes bytes(static_cast<size_t>(n * size));
  for (int64_t i = 0; i < n; ++i) {
    const uint64_t bits = value_bits(kind, dtype, random);
    memcpy(bytes.data() + i * size, &bits, static_cast<size_t>(size));
  }
  return bytes;
}

Bytes random_bytes(int64_t n, Random& random) {
  Bytes bytes(static_cast<size_t>(n));
  for (unsigned char& byte : bytes) byte = static_cast<unsigned char>(random.bits());
  return bytes;
}

// ---- one call of one kernel

// How outputs are compared: by their bits; or as floats or doubles of which one NaN is as good as another, as
// arithmetic makes them.
enum class Same { bits, floats, doubles };

struct Work {
  std::string name;
  Bytes in;
  Bytes out;  // before the call
  Same same;
  std::function<void(const Kernels&, const unsigned char* in, unsigned char* out)> run;
};

// The first place where they differ, or -1.
int64_t difference(Same same, const unsigned char* want, const unsigned char* got, int64_t bytes) {
  if (memcmp(want, got, static_cast<size_t>(bytes)) == 0) return -1;
  const int64_t size = same == Same::floats ? 4 : same == Same::doubles ? 8 : 1;
  for (int64_t i = 0; i < bytes / size; ++i) {
    if (memcmp(want + i * size, got + i * size, static_cast<size_t>(size)) == 0) continue;
    if (same == Same::floats && is_nan(load<float>(want, i)) && is_nan(load<float>(got, i))) continue;
    if (same == Same::doubles && isnan(load<double>(want, i)) && isnan(load<double>(got, i))) continue;
    return i * size;
  }
  return -1;
}

class Checker {
 public:
  explicit Checker(int64_t largest) : in_(largest), out_(largest), all_(all_kernels()) {}

  void check(const Work& work, const std::vector<Place>& places) {
    Bytes want = work.out;
    work.run(*all_[0], work.in.data(), want.data());
    for (const Kernels* kernel : all_) {
      for (const Place& place : places) check(work, want, *kernel, place);
    }
  }

 private:
  void check(const Work& work, const Bytes& want, const Kernels& kernel, const Place& place) {
    const auto in_bytes = static_cast<int64_t>(work.in.size());
    const auto out_bytes = static_cast<int64_t>(want.size());
    unsigned char* in = place.in(in_, in_bytes);
    unsigned char* out = place.in(out_, out_bytes);
    if (in_bytes) memcpy(in, work.in.data(), work.in.size());
    if (out_bytes) memcpy(out, work.out.data(), want.size());
    set_canaries(out_, out, out_bytes);
    work.run(kernel, in, out);
    ++checks;
    const int64_t at = difference(work.same, want.data(), out, out_bytes);
    if (at >= 0) {
      fail("%s, %s, alignment %lld%s: byte %lld is %02x, scalar %02x", kernel.isa, work.name.c_str(),
           static_cast<long long>(place.alignment), place.at_end ? " at the end" : "", static_cast<long long>(at),
           out[at], want[static_cast<size_t>(at)]);
    }
    if (!canaries_live(out_, out, out_bytes)) fail("%s, %s: wrote beside its output", kernel.isa, work.name.c_str());
  }

  Pages in_;
  Pages out_;
  std::vector<const Kernels*> all_;
};

// ---- the calls for n elements

std::string named(const char* operation, int64_t n, const std::string& rest) {
  return std::string(operation) + " of " + std::to_string(n) + ", " + rest;
}

struct Given {
  float scale;
  float limit;
};

// Elements about 1: an ordinary scale; limits below and above it (only passed ones make a bound below 2^31); the ends
// of what scales may be; a limit that nothing reaches; and a layer in which nothing fires.
constexpr Given kGiven[] = {{1.0f, 1.0f},       {0.7f, 0.3f},         {0.01f, 0.5f},     {0x1p-60f, 1.0f},
                            {3.0e38f, 3.0e38f}, {0x1p-60f, 0x1p-61f}, {3.0e38f, 1e-45f}, {0.0f, 1.0f}};
constexpr float kWorths[] = {
    1.0f, -1.0f, 0.3f, -0.0f, 0.0f, 1e-40f, -65519.0f, 65520.0f, 0x1p-25f, 3e38f, __builtin_inff(), __builtin_nanf("")};

Same same_of(DType dtype) { return dtype == DType::float32 ? Same::floats : Same::bits; }

template <class F>
void encodes(int64_t n, Kind kind, DType dtype, const Given& given, Random& random, const F& f) {
  const Draw draw{random.bits(), random.bits(), static_cast<uint32_t>(random.bits())};
  const Quantiser quantiser = quantiser_of(passed_scale(given.scale, given.limit));
  // Any unit of a layer, the very last ones too.
  const int64_t units = (kLargestLayer - n) / kUnit;
  const int64_t first = kUnit * (random.below(3) == 0 ? 0 : random.below(2) == 0 ? units : random.below(units));
  const Bytes x = values(kind, dtype, n, random);
  const std::string about = std::string(name_of(dtype)) + ", scale " + std::to_string(given.scale) + ", limit " +
                            std::to_string(given.limit) + ", kind " + std::to_string(static_cast<int>(kind));
  for (const Packing packing : kTernary) {
    f(Work{named("encode", n, about + ", " + name_of(packing)), x,
           Bytes(static_cast<size_t>(payload_bytes(packing, n))), Same::bits,
           [=](const Kernels& kernel, const unsigned char* in, unsigned char* out) {
             kernel.encode(in, dtype, n, first, draw, quantiser, packing, out);
           }});
  }
  f(Work{named("ternarize", n, about), x, Bytes(static_cast<size_t>(n)), Same::bits,
         [=](const Kernels& kernel, const unsigned char* in, unsigned char* out) {
           kernel.ternarize(in, dtype, n, first, draw, quantiser, reinterpret_cast<int8_t*>(out));
         }});
}

template <class F>
void carries(int64_t n, Kind kind, DType dtype, Random& random, const F& f) {
  f(Work{named("encode", n, std::string(name_of(dtype)) + ", carried"), values(kind, dtype, n, random),
         Bytes(static_cast<size_t>(4 * n)), Same::bits,
         [=](const Kernels& kernel, const unsigned char* in, unsigned char* out) {
           kernel.encode(in, dtype, n, 0, Draw{}, Quantiser{}, Packing::float32, out);
         }});
}

uint32_t first_magnitude(const unsigned char* x, DType dtype) {
  switch (dtype) {
    case DType::float32: return magnitude_bits(load_float<float>(x, 0));
    case DType::float16: return magnitude_bits(load_float<Half>(x, 0));
    case DType::bfloat16: return magnitude_bits(load_float<BFloat16>(x, 0));
    case DType::float64: return magnitude_bits(load_float<double>(x, 0));
  }
  return 0;
}

template <class F>
void measures(int64_t n, Kind kind, DType dtype, bool center, Random& random, const F& f) {
  const int64_t stripes = (n + kStripe - 1) / kStripe;
  const int64_t first = random.below(2) == 0 ? 0 : random.below(stripes + 1);
  const int64_t last = random.below(2) == 0 ? stripes : first + random.below(stripes - first + 1);
  const Bytes before(sizeof(StripeSums));
  const std::string about =
      std::string(name_of(dtype)) + (center ? ", centred" : "") + ", kind " + std::to_string(static_cast<int>(kind));
  f(Work{named("scales", n, about), values(kind, dtype, n, random), before, Same::doubles,
         [=](const Kernels& kernel, const unsigned char* in, unsigned char* out) {
           StripeSums sums{};
           kernel.scales(in, dtype, n, first, last, center, &sums);
           if (center && n > 0) {
             sums.top = std::max(sums.top, first_magnitude(in, dtype));
             // Poisoned, so nobody asks for the sums: with infinity - infinity or 0 for absent elements.
             if (first_magnitude(in, dtype) >= kInfinity32) sums = StripeSums{{}, {}, sums.top};
           }
           if (sums.top > kInfinity32) sums.top = kNaN32;  // some NaN: which one does not matter
           memcpy(out, &sums, sizeof sums);
         }});
}

template <class F>
void clips(int64_t n, Kind kind, DType dtype, float limit, Random& random, const F& f) {
  const Bytes x = values(kind, dtype, n, random);
  const std::string about = std::string(name_of(dtype)) + ", limit " + std::to_string(limit) + ", kind " +
                            std::to_string(static_cast<int>(kind));
  f(Work{named("clip", n, about), x, Bytes(x.size()), Same::bits,
         [=](const Kernels& kernel, const unsigned char* in, unsigned char* out) {
           kernel.clip(in, dtype, n, limit, out);
         }});
  f(Work{named("clip in place", n, about),
         {},
         x,
         Same::bits,
         [=](const Kernels& kernel, const unsigned char*, unsigned char* out) {
           kernel.clip(out, dtype, n, limit, out);
         }});
}

template <class F>
void decodes(int64_t n, DType dtype, Packing packing, float worth, Random& random, const F& f) {
  const Bytes payload = packing == Packing::float32 ? values(Kind::edges, DType::float32, n, random)
                                                    : random_bytes(payload_bytes(packing, n), random);
  const bool copied = packing == Packing::float32 && worth == 1.0f;
  f(Work{named("decode", n, std::string(name_of(dtype)) + ", " + name_of(packing) + ", worth " + std::to_string(worth)),
         payload, Bytes(static_cast<size_t>(n * size_of(dtype))), copied ? Same::bits : same_of(dtype),
         [=](const Kernels& kernel, const unsigned char* in, unsigned char* out) {
           kernel.decode(in, packing, n, worth, dtype, out);
         }});
}

template <class F>
void sums(int64_t n, DType dtype, Packing packing, int64_t count, bool fresh, Random& random, const F& f) {
  const int64_t each = payload_bytes(packing, n);
  Bytes payloads = packing == Packing::float32 ? values(Kind::edges, DType::float32, n * count, random)
                                               : random_bytes(each * count, random);
  std::vector<float> worth;
  for (int64_t i = 0; i < count; ++i) worth.push_back(kWorths[random.below(random.below(4) == 0 ? 12 : 10)]);
  f(Work{named("decode_sum", n,
               std::string(name_of(dtype)) + ", " + name_of(packing) + ", " + std::to_string(count) + " terms"),
         payloads, values(Kind::edges, dtype, n, random), same_of(dtype),
         [=](const Kernels& kernel, const unsigned char* in, unsigned char* out) {
           std::vector<const uint8_t*> starts;
           for (int64_t i = 0; i < count; ++i) starts.push_back(in + i * each);
           kernel.decode_sum(Terms{starts.data(), worth.data(), count}, packing, n, fresh, dtype, out);
         }});
}

// Payloads of one ternary packing, or runs of all packings; of any bytes, or of one trit throughout, whose sums reach
// the ends of what counts hold.
template <class F>
void adds(int64_t n, Packing packing, int64_t count, Random& random, const F& f) {
  const auto add = [&](const char* name, const auto& next_packing, const auto& payload_of) {
    Bytes payloads;
    std::vector<Packing> packings;
    std::vector<int64_t> starts;
    for (int64_t i = 0; i < count; ++i) {
      packings.push_back(next_packing(packings));
      starts.push_back(static_cast<int64_t>(payloads.size()));
      const Bytes payload = payload_of(packings.back());
      payloads.insert(payloads.end(), payload.begin(), payload.end());
    }
    const std::string about = std::string(name_of(packing)) + ", " + std::to_string(count) + " of " + name;
    f(Work{named("sum_trits", n, about), payloads, Bytes(static_cast<size_t>(payload_bytes(packing, n))), Same::bits,
           [=](const Kernels& kernel, const unsigned char* in, unsigned char* out) {
             std::vector<const uint8_t*> addends;
             for (const int64_t start : starts) addends.push_back(in + start);
             kernel.sum_trits(Addends{addends.data(), packings.data(), count}, n, packing, out);
           }});
  };
  const auto any = [&](Packing of) { return random_bytes(payload_bytes(of, n), random); };
  for (const Packing of : kTernary) {
    add(name_of(of), [=](const auto&) { return of; }, any);
    for (const int trit : {1, -1}) {
      add(
          trit > 0 ? "ones" : "minus ones", [=](const auto&) { return of; },
          [=](Packing) {
            Bytes bytes(static_cast<size_t>(payload_bytes(of, n)));
            const std::vector<int8_t> trits(static_cast<size_t>(n), static_cast<int8_t>(trit));
            scalar::pack(trits.data(), n, of, bytes.data());
            return bytes;
          });
    }
  }
  add(
      "mixed",
      [&](const std::vector<Packing>& before) {
        if (!before.empty() && random.below(2) == 0) return before.back();
        const int64_t which = random.below(5);
        return which < 2 ? kTernary[which] : kCounts[which - 2];
      },
      any);
}

template <class F>
void packs(int64_t n, Packing packing, Random& random, const F& f) {
  const int64_t bytes = payload_bytes(packing, n);
  f(Work{named("pack", n, name_of(packing)), random_bytes(n, random), Bytes(static_cast<size_t>(bytes)), Same::bits,
         [=](const Kernels& kernel, const unsigned char* in, unsigned char* out) {
           kernel.pack(reinterpret_cast<const int8_t*>(in), n, packing, out);
         }});
  f(Work{named("unpack", n, name_of(packing)), random_bytes(bytes, random), Bytes(static_cast<size_t>(n)), Same::bits,
         [=](const Kernels& kernel, const unsigned char* in, unsigned char* out) {
           kernel.unpack(in, n, packing, reinterpret_cast<int8_t*>(out));
         }});
}

// Every operation, dtype and packing, with some values.
template <class F>
void some_works(int64_t n, Random& random, const F& f) {
  for (const DType dtype : kDTypes) {
    encodes(n, Kind::plain, dtype, kGiven[0], random, f);
    encodes(n, Kind::edges, dtype, kGiven[1], random, f);
    carries(n, Kind::edges, dtype, random, f);
    measures(n, Kind::plain, dtype, n % 2 == 0, random, f);
    clips(n, Kind::edges, dtype, 0.3f, random, f);
    for (const Packing packing : kPackings) {
      decodes(n, dtype, packing, kWorths[2], random, f);
      sums(n, dtype, packing, 2, n % 2 == 0, random, f);
    }
  }
  for (const Packing packing : kTiled) packs(n, packing, random, f);
  for (const Packing packing : kCounts) adds(n, packing, 3, random, f);
}

// The same with all values.
template <class F>
void all_works(int64_t n, Random& random, const F& f) {
  for (const DType dtype : kDTypes) {
    for (const Kind kind : kKinds) {
      for (const Given& given : kGiven) encodes(n, kind, dtype, given, random, f);
      carries(n, kind, dtype, random, f);
      for (const bool center : {false, true}) measures(n, kind, dtype, center, random, f);
      for (const float limit : {0.3f, __builtin_inff(), 1e-40f, 65504.0f}) clips(n, kind, dtype, limit, random, f);
    }
    for (const Packing packing : kPackings) {
      for (const float worth : kWorths) decodes(n, dtype, packing, worth, random, f);
      for (const int64_t count : {1, 2, 5}) {
        for (const bool fresh : {false, true}) sums(n, dtype, packing, count, fresh, random, f);
      }
    }
  }
  for (const Packing packing : kTiled) packs(n, packing, random, f);
  for (const Packing packing : kCounts) {
    for (const int64_t count : {1, 2, 7, 9}) adds(n, packing, count, random, f);
  }
}

// Around every register, row, tile, unit and stripe.
constexpr int64_t kLengths[] = {0,    1,    2,    3,    4,    5,    7,    8,    9,     15,   16,   17,
                                31,   32,   33,   63,   64,   65,   127,  128,  129,   255,  257,  511,
                                512,  513,  639,  640,  641,  1023, 1025, 1279, 1281,  2047, 2049, 2559,
                                2560, 2561, 5119, 5121, 7681, 8191, 8192, 8193, 12801, 17000};

void edges() {
  Checker checker(8 * 5 * 17000);
  Random random(1);
  for (const int64_t n : kLengths) {
    all_works(n, random,
              [&](const Work& work) { checker.check(work, {Place{random.below(64), false}, Place{-1, true}}); });
  }
  // More trits of one packing than a byte holds the sum of.
  Checker many_checker(2 * 300 * 5121);
  for (const Packing packing : kCounts) {
    for (const int64_t count : {127, 128, 300}) {
      adds(5121, packing, count, random, [&](const Work& work) { many_checker.check(work, {Place{-1, true}}); });
    }
  }
  // From 16 MiB of output on, decoding to float32 writes past the caches.
  const int64_t large = (int64_t{1} << 22) + 700;
  Checker large_checker(4 * large);
  for (const int64_t alignment : {16, 4}) {
    const auto check = [&](const Work& work) { large_checker.check(work, {Place{alignment, false}}); };
    decodes(large, DType::float32, Packing::two_bit, 0.3f, random, check);
    sums(large, DType::float32, Packing::two_bit, 2, true, random, check);
  }
}

// Calls f(i) for i in [0, count) on as many threads as there are processors.
template <class F>
void on_all_processors(int64_t count, const F& f) {
  std::atomic<int64_t> next{0};
  std::vector<std::thread> threads;
  for (unsigned k = 0; k < std::max(1u, std::thread::hardware_concurrency()); ++k) {
    threads.emplace_back([&] {
      for (int64_t i = next++; i < count; i = next++) f(i);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

void alignments(int64_t step) {
  std::vector<Place> places{Place{-1, true}};
  for (int64_t alignment = 0; alignment < 64; ++alignment) {
    for (const bool at_end : {false, true}) places.push_back(Place{alignment, at_end});
  }
  const auto lengths = 4096 / step + 1;
  on_all_processors(lengths, [&](int64_t i) {
    Checker checker(2 * 8 * 4096);
    Random random(static_cast<uint64_t>(i));
    some_works(i * step, random, [&](const Work& work) { checker.check(work, places); });
  });
}

// ---- the vector operations themselves, on every value

std::vector<Operations> all_operations() {
  const Operations built[] = {
#if defined(TERNGRAD_HAS_AVX2)
      {"avx2", avx2::convert, avx2::thresholds},
#endif
#if defined(TERNGRAD_HAS_AVX512)
      {"avx512", avx512::convert, avx512::thresholds},
#endif
#if defined(TERNGRAD_HAS_NEON)
      {"neon", neon::convert, neon::thresholds},
#endif
  };
  std::vector<Operations> found;
  for (const std::string& isa : runnable_isas()) {
    for (const Operations& operations : built) {
      if (operations.isa == isa) found.push_back(operations);
    }
  }
  return found;
}

template <class From, class To>
void convert_as(const void* x, int64_t n, void* out) {
  for (int64_t i = 0; i < n; ++i) store_float<To>(out, i, load_float<From>(x, i));
}

template <class From>
void convert_from(const void* x, DType to, int64_t n, void* out) {
  switch (to) {
    case DType::float32: return convert_as<From, float>(x, n, out);
    case DType::float16: return convert_as<From, Half>(x, n, out);
    case DType::bfloat16: return convert_as<From, BFloat16>(x, n, out);
    case DType::float64: return convert_as<From, double>(x, n, out);
  }
}

void convert(const void* x, DType from, DType to, int64_t n, void* out) {
  switch (from) {
    case DType::float32: return convert_from<float>(x, to, n, out);
    case DType::float16: return convert_from<Half>(x, to, n, out);
    case DType::bfloat16: return convert_from<BFloat16>(x, to, n, out);
    case DType::float64: return convert_from<double>(x, to, n, out);
  }
}

void check_conversion(const std::vector<Operations>& all, const void* x, DType from, DType to, int64_t n) {
  Bytes want(static_cast<size_t>(n * size_of(to)));
  Bytes got(want.size());
  convert(x, from, to, n, want.data());
  for (const Operations& operations : all) {
    operations.convert(x, from, to, n, got.data());
    ++checks;
    if (want == got) continue;
    for (int64_t i = 0; i < n; ++i) {
      const auto start = static_cast<std::ptrdiff_t>(i * size_of(to));
      if (std::equal(want.begin() + start, want.begin() + start + size_of(to), got.begin() + start)) continue;
      if (to == DType::float32) {  // some NaN of the same sign
        const auto a = load<float>(want.data(), i);
        const auto b = load<float>(got.data(), i);
        if (is_nan(a) && is_nan(b) && bits_of(a) >> 31 == bits_of(b) >> 31) continue;
      }
      fail("%s, %s to %s: element %lld", operations.isa, name_of(from), name_of(to), static_cast<long long>(i));
      break;
    }
  }
}

void check_thresholds(const std::vector<Operations>& all, const float* x, int64_t n, const Given& given) {
  const Quantiser quantiser = quantiser_of(passed_scale(given.scale, given.limit));
  std::vector<uint32_t> want(static_cast<size_t>(n));
  std::vector<uint32_t> got(want.size());
  for (size_t i = 0; i < want.size(); ++i) want[i] = threshold_of(x[i], quantiser);
  for (const Operations& operations : all) {
    operations.thresholds(x, n, quantiser, got.data());
    ++checks;
    if (want == got) continue;
    const size_t i = static_cast<size_t>(std::mismatch(want.begin(), want.end(), got.begin()).first - want.begin());
    fail("%s, scale %a, limit %a: T of %08x is %08x, scalar %08x", operations.isa, static_cast<double>(given.scale),
         static_cast<double>(given.limit), bits_of(x[i]), got[i], want[i]);
  }
}

// All 2^16 patterns of the small types, and some of the others.
void conversions() {
  const std::vector<Operations> all = all_operations();
  Random random(2);
  Bytes patterns(2 << 16);
  for (uint32_t i = 0; i < 1 << 16; ++i) store<uint16_t>(patterns.data(), i, static_cast<uint16_t>(i));
  for (const DType to : kDTypes) {
    check_conversion(all, patterns.data(), DType::float16, to, 1 << 16);
    check_conversion(all, patterns.data(), DType::bfloat16, to, 1 << 16);
    for (const Kind kind : kKinds) {
      for (const DType from : {DType::float32, DType::float64}) {
        check_conversion(all, values(kind, from, 1 << 14, random).data(), from, to, 1 << 14);
      }
    }
  }
  for (const Kind kind : kKinds) {
    const Bytes bytes = values(kind, DType::float32, 1 << 14, random);
    std::vector<float> x(1 << 14);
    memcpy(x.data(), bytes.data(), bytes.size());
    for (const Given& given : kGiven) {
      if (given.scale > 0) check_thresholds(all, x.data(), 1 << 14, given);
    }
  }
}

// Every float32: its thresholds and trits under an ordinary scale, under one that limits, and at both ends of what
// scales may be; and rounded to the other types.
void exhaustive() {
  constexpr int64_t kChunk = 1 << 18;
  const std::vector<Operations> all = all_operations();
  const std::vector<const Kernels*> tables = all_kernels();
  on_all_processors((int64_t{1} << 32) / kChunk, [&](int64_t chunk) {
    std::vector<float> x(kChunk);
    for (int64_t i = 0; i < kChunk; ++i)
      x[static_cast<size_t>(i)] = float_of(static_cast<uint32_t>(chunk * kChunk + i));
    for (const DType to : {DType::float16, DType::bfloat16, DType::float64}) {
      check_conversion(all, x.data(), DType::float32, to, kChunk);
    }
    const Draw draw{1, static_cast<uint64_t>(chunk), 0};
    for (const Given& given :
         {Given{0.0123f, 0.0123f}, Given{0.7f, 0.3f}, Given{0x1p-60f, 1.0f}, Given{3.0e38f, 3.0e38f}}) {
      check_thresholds(all, x.data(), kChunk, given);
      const Quantiser quantiser = quantiser_of(passed_scale(given.scale, given.limit));
      for (const Packing packing : kTernary) {
        const auto bytes = static_cast<size_t>(payload_bytes(packing, kChunk));
        Bytes want(bytes);
        Bytes got(bytes);
        for (const Kernels* kernel : tables) {
          Bytes& to = kernel == tables[0] ? want : got;
          kernel->encode(x.data(), DType::float32, kChunk, 0, draw, quantiser, packing, to.data());
          ++checks;
          if (kernel != tables[0] && want != got)
            fail("%s: trits of the floats from %08x on", kernel->isa, bits_of(x[0]));
        }
      }
    }
  });
}

}  // namespace
}  // namespace tests
}  // namespace terngrad

int main(int count, char** arguments) {
  using namespace terngrad::tests;
  const std::string mode = count > 1 ? arguments[1] : "edges";
  const terngrad::FloatEnvironment environment;
  for (const std::string& isa : terngrad::runnable_isas()) std::printf("%s ", isa.c_str());
  std::fflush(stdout);
  if (mode == "edges") {
    edges();
    conversions();
  } else if (mode == "alignments" && count == 3 && std::atoi(arguments[2]) > 0) {
    alignments(std::atoi(arguments[2]));
  } else if (mode == "exhaustive") {
    exhaustive();
  } else {
    std::fprintf(stderr, "usage: test_kernels [edges | alignments STEP | exhaustive]\n");
    return 2;
  }
  return report(mode.c_str());
}
