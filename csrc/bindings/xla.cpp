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

#include "../runtime/cuda.h"
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
  throw TypeError(std::string(argument) + ": expected a type that terngrad_kernels reads, got another one");
}

// Throws what XLA says went wrong.
void check(const xla::Frame& frame, xla::Error* error, const char* what) {
  if (error == nullptr) return;
  xla::ErrorText text{sizeof(xla::ErrorText), nullptr, error, nullptr, {}};
  frame.api->get_message(&text);
  const std::string message = std::string(what) + ": " + (text.message != nullptr ? text.message : "no reason given");
  xla::DestroyedError destroyed{sizeof(xla::DestroyedError), nullptr, error};
  frame.api->destroy_error(&destroyed);
  throw DeviceError(message);
}

// Where a call on a device runs, by XLA: its stream, and memory that is XLA's again when the call is queued, as that of
// XLA's own scratch allocators is.
class DeviceQueue {
 public:
  explicit DeviceQueue(const xla::Frame& frame) : frame_(frame) {
    if (frame.api->struct_size < sizeof(xla::Api)) throw DeviceError("a GPU's arrays need jax 0.6 or newer");
    xla::OrdinalArguments at{sizeof(xla::OrdinalArguments), nullptr, frame.context, 0};
    check(frame, frame.api->get_ordinal(&at), "the device");
    device_ = at.ordinal;
    xla::StreamArguments stream{sizeof(xla::StreamArguments), nullptr, frame.context, nullptr};
    check(frame, frame.api->get_stream(&stream), "the stream");
    queue_ = Queue{stream.stream, Array{"scratch", -1, nullptr, 0, Element::uint8, true, device_}};
  }
  DeviceQueue(const DeviceQueue&) = delete;
  DeviceQueue& operator=(const DeviceQueue&) = delete;
  ~DeviceQueue() {
    if (queue_.scratch.data == nullptr) return;
    const auto size = static_cast<size_t>(queue_.scratch.size);
    xla::FreeArguments freed{sizeof(xla::FreeArguments), nullptr, frame_.context, size, queue_.scratch.data};
    frame_.api->free(&freed);  // whose error would tell of a bug in XLA alone
  }

  int32_t device() const { return device_; }
  const Queue* with_scratch(int64_t bytes) {
    if (bytes > 0) {
      const auto size = static_cast<size_t>(bytes);
      xla::AllocateArguments memory{
          sizeof(xla::AllocateArguments), nullptr, frame_.context, size, kScratchAlignment, nullptr};
      check(frame_, frame_.api->allocate(&memory), "memory for the call");
      queue_.scratch.data = static_cast<unsigned char*>(memory.data);
      queue_.scratch.size = bytes;
    }
    return &queue_;
  }

 private:
  static constexpr size_t kScratchAlignment = 16;

  const xla::Frame& frame_;
  int32_t device_ = kHost;
  Queue queue_{};
};

// A number of 64 bits: itself, or where it lies on the device.
struct Word {
  uint64_t value;
  const unsigned char* at;
  int32_t device;
};

// Operands and results are taken one after the other, each under the name of the public function's argument.
class Call {
 public:
  // `queue`: of a call on a device, null for the host's.
  Call(const xla::Frame& frame, DeviceQueue* queue) : frame_(frame), queue_(queue) {}

  // For the operation, as scratch_bytes counts: `measured`, and the arrays that were taken.
  const Queue* queue(const Layout& layout, bool measured, int64_t more = 0) const {
    if (queue_ == nullptr) return nullptr;
    return queue_->with_scratch(scratch_bytes(layout, measured, operand_ + result_ + more));
  }
  const Queue* queue() const { return queue_ == nullptr ? nullptr : queue_->with_scratch(0); }

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

  Word word(const char* argument) {
    const Array array = operand(argument);
    const bool whole = array.element == Element::int64 && array.size == 1;
    const bool halves = array.element == Element::uint32 && array.size == 2;
    if (!whole && !halves) throw TypeError(array.name() + ": expected 0-d int64 or uint32 (low, high)");
    if (array.device != kHost) return Word{0, array.data, array.device};
    Word word{0, nullptr, kHost};
    std::memcpy(&word.value, array.data, sizeof word.value);
    return word;
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
  Array array_of(const xla::Buffers& buffers, int64_t index, const char* argument, int64_t place, bool writable) const {
    if (index >= buffers.size || buffers.kinds[index] != xla::kBuffer) {
      throw ValueError(std::string(argument) + ": missing in the custom call");
    }
    const xla::Buffer& buffer = *buffers.buffers[index];
    int64_t size = 1;
    for (int64_t i = 0; i < buffer.rank; ++i) size *= buffer.dimensions[i];
    auto* data = static_cast<unsigned char*>(buffer.data);
    const int32_t device = queue_ == nullptr ? kHost : queue_->device();
    return Array{argument, place, data, size, element_of(buffer.type, argument), writable, device};
  }

  Arrays rest(const xla::Buffers& buffers, int64_t* next, const char* argument, int64_t kept, bool writable) const {
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
  DeviceQueue* queue_;
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
  const Word seed = call.word("seed");
  const Word offset = call.word("offset");
  const auto layer = static_cast<uint32_t>(call.integer("layer"));
  return DrawBase{seed.value, offset.value, layer, seed.at, offset.at, seed.device, offset.device};
}

// ---- the operations: operands and results in the order in which they are taken here

void run_scales(Call& call) {
  const SharedLayout layout = call.layout();
  const Arrays x = call.operands("x", 0);
  const Array scale = call.result("out.scale");
  const Array limit = call.result("out.limit");
  scales(*layout, x, measure_of(call, call.integer("center") != 0), scale, limit, call.queue(*layout, true));
}

void run_clip(Call& call) {
  const SharedLayout layout = call.layout();
  Passed passed(call);
  const Arrays x = call.operands("x", passed.operands());
  const PassedScales* scales = passed.take(call);
  const Arrays out = call.results("out", 0);
  const Queue* queue = call.queue(*layout, scales == nullptr);
  clip(*layout, x, measure_of(call, call.integer("center") != 0), scales, out, queue);
}

void run_ternarize(Call& call) {
  const SharedLayout layout = call.layout();
  Passed passed(call);
  const Arrays x = call.operands("x", passed.operands() + 2);
  const PassedScales* scales = passed.take(call);
  const DrawBase draw = draw_of(call);
  const Arrays trits = call.results("out", 1);
  const Array scale = call.result("out[1]");
  const Queue* queue = call.queue(*layout, scales == nullptr);
  ternarize(*layout, x, measure_of(call, false), scales, draw, trits, scale, queue);
}

void run_encode(Call& call) {
  const SharedLayout layout = call.layout();
  Passed passed(call);
  const Arrays x = call.operands("x", passed.operands() + 2);
  const PassedScales* scales = passed.take(call);
  const DrawBase draw = draw_of(call);
  const Array out = call.result("out");
  encode(*layout, x, measure_of(call, false), scales, draw, out, call.queue(*layout, scales == nullptr));
}

void run_decode(Call& call) {
  const SharedLayout layout = call.layout();
  const Array data = call.operand("packed.data");
  const Arrays out = call.results("out", 0);
  decode(*layout, data, call.number("weight"), false, out, call.queue(*layout, false));
}

void run_decode_sum(Call& call) {
  const SharedLayout layout = call.layout();
  const Arrays messages = call.operands("messages", 0);
  const std::vector<double> weights = call.numbers("weights");
  const Arrays out = call.results("out", 0);
  const Queue* queue = call.queue(*layout, false, static_cast<int64_t>(weights.size()));
  decode_sum(*layout, messages, weights, out, queue);
}

// Each summand has a layout of its own: "layout0", "layout1", ...
void run_sum_trits(Call& call) {
  const SharedLayout result = call.layout();
  const Arrays messages = call.operands("messages", 0);
  const std::vector<int64_t> workers = call.integers("workers");
  if (workers.size() != messages.size()) throw ValueError("workers: expected one number a message");
  std::vector<SharedLayout> layouts;
  std::vector<Summand> summands;
  int64_t rows = 0;
  for (size_t i = 0; i < messages.size(); ++i) {
    layouts.push_back(call.layout(("layout" + std::to_string(i)).c_str()));
    rows += messages[i].size / std::max<int64_t>(layouts.back()->nbytes(), 1);
    summands.push_back(Summand{layouts.back().get(), messages[i], workers[i]});
  }
  const Array out = call.result("out");
  sum_trits(summands, *result, out, call.queue(*result, false, rows));
}

void run_repack(Call& call) {
  const SharedLayout layout = call.layout();
  const SharedLayout result = call.layout("result");
  Passed passed(call);
  const Arrays messages = call.operands("messages", passed.operands() + 2);
  const PassedScales* scales = passed.take(call);
  const DrawBase draw = draw_of(call);
  const std::vector<double> weights = call.numbers("weights");
  const Array out = call.result("out");
  const Queue* queue = call.queue(*layout, scales == nullptr, static_cast<int64_t>(weights.size()));
  repack(*layout, messages, weights, measure_of(call, false), scales, draw, *result, out, queue);
}

void run_pack(Call& call) {
  const Array trits = call.operand("trits");
  pack(trits, packing_of(call.integer("packing")), call.result("out"), call.queue());
}

void run_unpack(Call& call) {
  const Array payload = call.operand("payload");
  unpack(payload, packing_of(call.integer("packing")), call.result("out"), call.queue());
}

// ---- the handshake, and errors

xla::Error* failure(const xla::Frame& frame, xla::ErrorCode code, const char* message) {
  xla::ErrorArguments arguments{sizeof(xla::ErrorArguments), nullptr, message, code};
  return frame.api->create_error(&arguments);
}

// Newer XLA takes handlers of older versions too, jaxlib 0.5 only those of its own: so a handler says that it is of
// XLA's version, as far as the header was compared with it. jaxlib 0.5 asks without its table of functions.
xla::Error* introduce(const xla::Frame& frame, xla::Metadata* metadata, uint32_t traits) {
  int32_t minor = xla::kOldestMinorVersion;
  if (frame.api != nullptr && frame.api->version.major_version == xla::kMajorVersion) {
    minor = std::clamp(frame.api->version.minor_version, minor, xla::kNewestMinorVersion);
  }
  metadata->version = xla::Version{sizeof(xla::Version), nullptr, xla::kMajorVersion, minor};
  metadata->traits = traits;
  return nullptr;
}

enum class Platform { host, cuda };

template <void (*run)(Call&), Platform platform>
xla::Error* handle(xla::Frame* frame) noexcept {
  // A device's calls are not captured: their scratch would be given to others before the capture is replayed.
  constexpr uint32_t kTraits = platform == Platform::host ? xla::kCommandBufferCompatible : 0;
  for (xla::Extension* each = frame->extensions; each != nullptr; each = each->next) {
    if (each->type == xla::kMetadataExtension) {
      return introduce(*frame, reinterpret_cast<xla::MetadataExtension*>(each)->metadata, kTraits);
    }
  }
  try {
    if (frame->struct_size < sizeof(xla::Frame)) throw ValueError("a call frame that is too short");
    if (frame->stage != xla::Stage::execute) throw ValueError("called in another stage than that of execution");
    if constexpr (platform == Platform::host) {
      Call call(*frame, nullptr);
      run(call);
    } else {
      DeviceQueue queue(*frame);
      Call call(*frame, &queue);
      run(call);
    }
    return nullptr;
  } catch (const std::bad_alloc&) {
    return failure(*frame, xla::ErrorCode::resource_exhausted, "terngrad_kernels: out of memory");
  } catch (const std::exception& error) {
    return failure(*frame, xla::ErrorCode::invalid_argument, error.what());
  }
}

struct Target {
  const char* name;
  xla::Handler* host;
  xla::Handler* cuda;
};

template <void (*run)(Call&)>
constexpr Target target(const char* name) {
  return Target{name, handle<run, Platform::host>, handle<run, Platform::cuda>};
}

// The number in a name changes with the operands or the attributes, so that programs kept in files stay what they are.
constexpr Target kTargets[] = {
    target<run_scales>("terngrad_kernels.scales.v1"),       target<run_clip>("terngrad_kernels.clip.v1"),
    target<run_ternarize>("terngrad_kernels.ternarize.v1"), target<run_encode>("terngrad_kernels.encode.v1"),
    target<run_decode>("terngrad_kernels.decode.v1"),       target<run_decode_sum>("terngrad_kernels.decode_sum.v1"),
    target<run_sum_trits>("terngrad_kernels.sum_trits.v1"), target<run_repack>("terngrad_kernels.repack.v1"),
    target<run_pack>("terngrad_kernels.pack.v1"),           target<run_unpack>("terngrad_kernels.unpack.v1"),
};

}  // namespace

void define_xla_handlers(py::module_& module) {
  module.def(
      "xla_handlers",
      [] {
        py::dict host;
        py::dict devices;
        for (const Target& target : kTargets) {
          host[target.name] = py::capsule(reinterpret_cast<void*>(target.host));
          devices[target.name] = py::capsule(reinterpret_cast<void*>(target.cuda));
        }
        py::dict platforms;  // by JAX's name of the platform
        platforms["cpu"] = host;
        if (cuda::is_built() && !cuda::is_emulated()) platforms["CUDA"] = devices;
        return platforms;
      },
      "Return {platform: {name of a custom call: its handler}}.");
}

}  // namespace terngrad
