// Handlers run on XLA's threads, without Python and its lock: they take a call apart, and the runtime does the rest,
// its checks included.
#include "xla.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <vector>

#include "../runtime/errors.h"
#include "../runtime/operations.h"
#include "arrays.h"
#include "xla_ffi.h"

namespace terngrad {

namespace {

// ---- layouts

// Numbers somewhere in memory: what a map is searched for without making a vector of them.
struct Numbers {
  const int64_t* data;
  size_t size;
};

struct LessNumbers {
  using is_transparent = void;
  static Numbers of(const std::vector<int64_t>& numbers) { return {numbers.data(), numbers.size()}; }
  static Numbers of(Numbers numbers) { return numbers; }
  template <class A, class B>
  bool operator()(const A& a, const B& b) const {
    const Numbers x = of(a);
    const Numbers y = of(b);
    return std::lexicographical_compare(x.data, x.data + x.size, y.data, y.data + y.size);
  }
};

using SharedLayout = std::shared_ptr<const Layout>;

SharedLayout make_layout(Numbers description) {
  constexpr size_t kSizes = 4;  // where they start
  const int64_t* numbers = description.data;
  const auto rest = static_cast<int64_t>(description.size) - static_cast<int64_t>(kSizes);
  if (rest < 1 || numbers[3] < 0 || numbers[3] >= rest) throw ValueError("layout: not the description of one");
  const int64_t* sizes = numbers + kSizes;
  const int64_t* codes = sizes + numbers[3];
  std::vector<Packing> packings;
  for (const int64_t* code = codes; code != numbers + description.size; ++code) packings.push_back(packing_of(*code));
  return std::make_shared<Layout>(std::vector<int64_t>(sizes, codes), std::move(packings), numbers[0], numbers[1],
                                  numbers[2]);
}

// Layouts by their descriptions. A call brings the description, so that a compiled program can be kept in a file; the
// next step brings the same one.
class Layouts {
 public:
  SharedLayout get(Numbers description) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      const auto found = known_.find(description);
      if (found != known_.end()) return found->second;
    }
    SharedLayout made = make_layout(description);
    const int64_t weight = static_cast<int64_t>(description.size + made->pieces().size() + made->gaps().size());
    if (weight > kMost) return made;
    const std::lock_guard<std::mutex> lock(mutex_);
    if (weight_ + weight > kMost) {
      known_.clear();
      weight_ = 0;
    }
    const std::vector<int64_t> key(description.data, description.data + description.size);
    if (known_.emplace(key, made).second) weight_ += weight;
    return made;
  }

 private:
  // Numbers, pieces and gaps that are kept: at most 16 MB of them, and some ten thousand layouts of one layer.
  static constexpr int64_t kMost = 250000;

  std::mutex mutex_;
  std::map<std::vector<int64_t>, SharedLayout, LessNumbers> known_;
  int64_t weight_ = 0;
};

Layouts& layouts() {
  static Layouts& kept = *new Layouts;  // XLA's threads may outlive what is destroyed at exit
  return kept;
}

// ---- one call

Element element_of(xla::DataType type, const char* argument) {
  switch (type) {
    case xla::DataType::int8: return Element::int8;
    case xla::DataType::int64: return Element::int64;
    case xla::DataType::uint8: return Element::uint8;
    case xla::DataType::uint32: return Element::uint32;
    case xla::DataType::float16: return Element::float16;
    case xla::DataType::float32: return Element::float32;
    case xla::DataType::float64: return Element::float64;
    case xla::DataType::bfloat16: return Element::bfloat16;
  }
  throw TypeError(std::string(argument) + ": a type that is not supported");
}

// Operands and results are taken one after the other, each under the name of the public function's argument.
class Call {
 public:
  explicit Call(const xla::Frame& frame) : frame_(frame) {}

  Array operand(const char* argument, int64_t place = -1) {
    return array_of(frame_.operands, operand_++, argument, place, false);
  }
  // All but the last `kept`.
  Arrays operands(const char* argument, int64_t kept) {
    return rest(frame_.operands, &operand_, argument, kept, false);
  }
  Array result(const char* argument, int64_t place = -1) {
    return array_of(frame_.results, result_++, argument, place, true);
  }
  Arrays results(const char* argument, int64_t kept) { return rest(frame_.results, &result_, argument, kept, true); }

  uint64_t word(const char* argument) {
    const Array array = operand(argument);
    const bool whole = array.element == Element::int64 && array.size == 1;
    const bool halves = array.element == Element::uint32 && array.size == 2;
    if (!whole && !halves) throw TypeError(array.name() + ": expected 0-d int64 or uint32 (low, high)");
    uint64_t value;
    std::memcpy(&value, array.data, sizeof value);
    return value;
  }

  int64_t integer(const char* name) const { return *scalar<int64_t>(name, xla::DataType::int64); }
  double number(const char* name) const { return *scalar<double>(name, xla::DataType::float64); }
  std::vector<double> numbers(const char* name) const { return values<double>(name, xla::DataType::float64); }
  std::vector<int64_t> integers(const char* name) const { return values<int64_t>(name, xla::DataType::int64); }
  SharedLayout layout(const char* name = "layout") const {
    const auto* array = attribute<xla::ArrayAttribute>(name, xla::AttributeKind::array, xla::DataType::int64);
    return layouts().get({static_cast<const int64_t*>(array->data), array->size});
  }

 private:
  static Array array_of(const xla::Buffers& buffers, int64_t index, const char* argument, int64_t place,
                        bool writable) {
    if (index >= buffers.size || buffers.kinds[index] != xla::kBuffer) {
      throw ValueError(std::string(argument) + ": missing in the custom call");
    }
    const xla::Buffer& buffer = *buffers.buffers[index];
    int64_t size = 1;
    for (int64_t i = 0; i < buffer.rank; ++i) size *= buffer.dimensions[i];
    auto* data = static_cast<unsigned char*>(buffer.data);
    return Array{argument, place, data, size, element_of(buffer.type, argument), writable};
  }

  static Arrays rest(const xla::Buffers& buffers, int64_t* next, const char* argument, int64_t kept, bool writable) {
    const int64_t count = buffers.size - kept - *next;
    Arrays arrays;
    for (int64_t i = 0; i < count; ++i) {
      arrays.push_back(array_of(buffers, (*next)++, argument, count == 1 ? -1 : i, writable));
    }
    return arrays;
  }

  template <class Attribute>
  const Attribute* attribute(const char* name, xla::AttributeKind kind, xla::DataType type) const {
    const xla::Attributes& attributes = frame_.attributes;
    for (int64_t i = 0; i < attributes.size; ++i) {
      const xla::Text& text = *attributes.names[i];
      if (text.size != std::strlen(name) || std::memcmp(text.data, name, text.size) != 0) continue;
      const auto* found = static_cast<const Attribute*>(attributes.values[i]);
      if (attributes.kinds[i] == kind && found->type == type) return found;
    }
    throw ValueError(std::string(name) + ": missing in the attributes of the custom call, or of another type");
  }

  template <class T>
  std::vector<T> values(const char* name, xla::DataType type) const {
    const auto* array = attribute<xla::ArrayAttribute>(name, xla::AttributeKind::array, type);
    const auto* data = static_cast<const T*>(array->data);
    return {data, data + array->size};
  }

  template <class T>
  const T* scalar(const char* name, xla::DataType type) const {
    return static_cast<const T*>(attribute<xla::ScalarAttribute>(name, xla::AttributeKind::scalar, type)->value);
  }

  const xla::Frame& frame_;
  int64_t operand_ = 0;
  int64_t result_ = 0;
};

// Scales and limits that are passed are the two operands behind the layers.
class Passed {
 public:
  explicit Passed(const Call& call) : given_(call.integer("scaled") != 0) {}
  int64_t operands() const { return given_ ? 2 : 0; }
  const PassedScales* take(Call& call) {
    if (!given_) return nullptr;
    passed_.scale = call.operand("scales.scale");
    passed_.limit = call.operand("scales.limit");
    return &passed_;
  }

 private:
  bool given_;
  PassedScales passed_{};
};

Measure measure_of(const Call& call, bool center) { return Measure{call.number("clip"), center}; }

DrawBase draw_of(Call& call) {
  const uint64_t seed = call.word("seed");
  const uint64_t offset = call.word("offset");
  return DrawBase{seed, offset, static_cast<uint32_t>(call.integer("layer"))};
}

// ---- the operations: operands and results in the order in which they are taken here

void run_scales(Call& call) {
  const SharedLayout layout = call.layout();
  const Arrays x = call.operands("x", 0);
  const Array scale = call.result("out.scale");
  const Array limit = call.result("out.limit");
  scales(*layout, x, measure_of(call, call.integer("center") != 0), scale, limit);
}

void run_clip(Call& call) {
  const SharedLayout layout = call.layout();
  Passed passed(call);
  const Arrays x = call.operands("x", passed.operands());
  const PassedScales* scales = passed.take(call);
  clip(*layout, x, measure_of(call, call.integer("center") != 0), scales, call.results("out", 0));
}

void run_ternarize(Call& call) {
  const SharedLayout layout = call.layout();
  Passed passed(call);
  const Arrays x = call.operands("x", passed.operands() + 2);
  const PassedScales* scales = passed.take(call);
  const DrawBase draw = draw_of(call);
  const Arrays trits = call.results("out", 1);
  ternarize(*layout, x, measure_of(call, false), scales, draw, trits, call.result("out[1]"));
}

void run_encode(Call& call) {
  const SharedLayout layout = call.layout();
  Passed passed(call);
  const Arrays x = call.operands("x", passed.operands() + 2);
  const PassedScales* scales = passed.take(call);
  const DrawBase draw = draw_of(call);
  encode(*layout, x, measure_of(call, false), scales, draw, call.result("out"));
}

void run_decode(Call& call) {
  const SharedLayout layout = call.layout();
  const Array data = call.operand("packed.data");
  decode(*layout, data, call.number("weight"), false, call.results("out", 0));
}

void run_decode_sum(Call& call) {
  const SharedLayout layout = call.layout();
  const Arrays messages = call.operands("messages", 0);
  decode_sum(*layout, messages, call.numbers("weights"), call.results("out", 0));
}

// Each summand has a layout of its own: "layout0", "layout1", ...
void run_sum_trits(Call& call) {
  const SharedLayout result = call.layout();
  const Arrays messages = call.operands("messages", 0);
  const std::vector<int64_t> workers = call.integers("workers");
  if (workers.size() != messages.size()) throw ValueError("workers: expected one number a message");
  std::vector<SharedLayout> layouts;
  std::vector<Summand> summands;
  for (size_t i = 0; i < messages.size(); ++i) {
    layouts.push_back(call.layout(("layout" + std::to_string(i)).c_str()));
    summands.push_back(Summand{layouts.back().get(), messages[i], workers[i]});
  }
  sum_trits(summands, *result, call.result("out"));
}

void run_repack(Call& call) {
  const SharedLayout layout = call.layout();
  const SharedLayout result = call.layout("result");
  Passed passed(call);
  const Arrays messages = call.operands("messages", passed.operands() + 2);
  const PassedScales* scales = passed.take(call);
  const DrawBase draw = draw_of(call);
  repack(*layout, messages, call.numbers("weights"), measure_of(call, false), scales, draw, *result,
         call.result("out"));
}

void run_pack(Call& call) {
  const Array trits = call.operand("trits");
  pack(trits, packing_of(call.integer("packing")), call.result("out"));
}

void run_unpack(Call& call) {
  const Array payload = call.operand("payload");
  unpack(payload, packing_of(call.integer("packing")), call.result("out"));
}

// ---- the handshake, and errors

xla::Error* failure(const xla::Frame& frame, xla::ErrorCode code, const char* message) {
  xla::ErrorArguments arguments{sizeof(xla::ErrorArguments), nullptr, message, code};
  return frame.api->create_error(&arguments);
}

// Newer XLA takes handlers of older versions too, jaxlib 0.5 only those of its own: so a handler says that it is of
// XLA's version, as far as the header was compared with it. jaxlib 0.5 asks without its table of functions.
xla::Error* introduce(const xla::Frame& frame, xla::Metadata* metadata) {
  int32_t minor = xla::kOldestMinorVersion;
  if (frame.api != nullptr && frame.api->version.major_version == xla::kMajorVersion) {
    minor = std::clamp(frame.api->version.minor_version, minor, xla::kNewestMinorVersion);
  }
  metadata->version = xla::Version{sizeof(xla::Version), nullptr, xla::kMajorVersion, minor};
  metadata->traits = xla::kCommandBufferCompatible;
  return nullptr;
}

template <void (*run)(Call&)>
xla::Error* handle(xla::Frame* frame) noexcept {
  for (xla::Extension* each = frame->extensions; each != nullptr; each = each->next) {
    if (each->type == xla::kMetadataExtension) {
      return introduce(*frame, reinterpret_cast<xla::MetadataExtension*>(each)->metadata);
    }
  }
  try {
    if (frame->struct_size < sizeof(xla::Frame)) throw ValueError("a call frame that is too short");
    if (frame->stage != xla::Stage::execute) throw ValueError("called in another stage than that of execution");
    Call call(*frame);
    run(call);
    return nullptr;
  } catch (const std::bad_alloc&) {
    return failure(*frame, xla::ErrorCode::resource_exhausted, "terngrad_kernels: out of memory");
  } catch (const std::exception& error) {
    return failure(*frame, xla::ErrorCode::invalid_argument, error.what());
  }
}

struct Target {
  const char* name;
  xla::Handler* handler;
};

// The number in a name changes with the operands or the attributes, so that programs kept in files stay what they are.
constexpr Target kHostTargets[] = {
    {"terngrad_kernels.scales.v1", handle<run_scales>},
    {"terngrad_kernels.clip.v1", handle<run_clip>},
    {"terngrad_kernels.ternarize.v1", handle<run_ternarize>},
    {"terngrad_kernels.encode.v1", handle<run_encode>},
    {"terngrad_kernels.decode.v1", handle<run_decode>},
    {"terngrad_kernels.decode_sum.v1", handle<run_decode_sum>},
    {"terngrad_kernels.sum_trits.v1", handle<run_sum_trits>},
    {"terngrad_kernels.repack.v1", handle<run_repack>},
    {"terngrad_kernels.pack.v1", handle<run_pack>},
    {"terngrad_kernels.unpack.v1", handle<run_unpack>},
};

}  // namespace

void define_xla_handlers(py::module_& module) {
  module.def(
      "xla_handlers",
      [] {
        py::dict host;
        for (const Target& target : kHostTargets) {
          host[target.name] = py::capsule(reinterpret_cast<void*>(target.handler));
        }
        py::dict platforms;  // by JAX's name of the platform
        platforms["cpu"] = host;
        return platforms;
      },
      "Return {platform: {name of a custom call: its handler}}.");
}

}  // namespace terngrad
