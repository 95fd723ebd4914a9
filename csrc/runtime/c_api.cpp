// The C interface: pointers become arrays, errors become numbers. What only C can get wrong is checked here (codes,
// NULL, lengths given beside pointers), all else where it is for every caller.
#include "../include/terngrad_kernels.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cuda.h"
#include "dispatch.h"
#include "errors.h"
#include "float_environment.h"
#include "operations.h"
#include "threads.h"

// With what it was made of, so that it can be made again with other packings.
struct tgk_layout {
  tgk_layout(std::vector<int64_t> of_sizes, std::vector<terngrad::Packing> of_packings, int64_t of_block,
             int64_t of_shards, int64_t of_shard)
      : layout(of_sizes, of_packings, of_block, of_shards, of_shard),
        sizes(std::move(of_sizes)),
        packings(std::move(of_packings)),
        block(of_block),
        shards(of_shards),
        shard(of_shard) {}

  terngrad::Layout layout;
  std::vector<int64_t> sizes;
  std::vector<terngrad::Packing> packings;
  int64_t block;
  int64_t shards;
  int64_t shard;
};

namespace terngrad {

namespace {

struct UnsupportedError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// ---- errors out

// A plain array: to set it cannot fail.
thread_local char last_error[512];

tgk_status failed(tgk_status status, const char* text) noexcept {
  const size_t length = std::min(std::strlen(text), sizeof last_error - 1);
  memcpy(last_error, text, length);
  last_error[length] = '\0';
  return status;
}

// Once, when a caller's first call comes; where it throws, the next call tries again. The Python module has done it
// when it is in the process, and may have chosen otherwise since.
void read_environment() {
  static const bool done = [] {
    if (isa_is_selected()) return true;
    set_num_threads_from_environment();
    select_isa_from_environment();
    return true;
  }();
  static_cast<void>(done);
}

// Nothing that is thrown leaves the library.
template <class F>
tgk_status guarded(const F& f) noexcept {
  try {
    read_environment();
    f();
    return TGK_OK;
  } catch (const ValueError& error) {
    return failed(TGK_ERROR_VALUE, error.what());
  } catch (const BufferError& error) {
    return failed(TGK_ERROR_VALUE, error.what());
  } catch (const TypeError& error) {
    return failed(TGK_ERROR_TYPE, error.what());
  } catch (const CorruptError& error) {
    return failed(TGK_ERROR_CORRUPT, error.what());
  } catch (const DeviceError& error) {
    return failed(TGK_ERROR_DEVICE, error.what());
  } catch (const UnsupportedError& error) {
    return failed(TGK_ERROR_UNSUPPORTED, error.what());
  } catch (const std::bad_alloc&) {
    return failed(TGK_ERROR_MEMORY, "out of memory");
  } catch (const std::length_error&) {  // of a vector
    return failed(TGK_ERROR_MEMORY, "out of memory");
  } catch (const std::exception& error) {
    return failed(TGK_ERROR_INTERNAL, error.what());
  } catch (...) {
    return failed(TGK_ERROR_INTERNAL, "unknown error");
  }
}

// ---- structures in

// A caller's structure of any age. Older than this library, but at least as long as the first one that there was: what
// it does not have is 0. Younger: what is not known here must be 0, and so asks for nothing.
template <class T>
T known_fields(const T* given, size_t first_size, const char* argument) {
  T known{};
  if (given->struct_size < first_size) {
    throw ValueError(std::string(argument) + ".struct_size: expected at least " + std::to_string(first_size) +
                     ", got " + std::to_string(given->struct_size));
  }
  const auto* bytes = reinterpret_cast<const unsigned char*>(given);
  for (size_t i = sizeof known; i < given->struct_size; ++i) {
    if (bytes[i] != 0) {
      throw UnsupportedError(std::string(argument) + ": a field at byte " + std::to_string(i) +
                             " is set that this version does not know");
    }
  }
  memcpy(&known, given, std::min(given->struct_size, sizeof known));
  return known;
}

// ---- pointers in

std::string named(const char* argument, int64_t place) {
  return place < 0 ? argument : std::string(argument) + "[" + std::to_string(place) + "]";
}

const Layout& geometry(const tgk_layout* layout, const char* argument = "layout", int64_t place = -1) {
  if (!layout) throw ValueError(named(argument, place) + ": expected a layout, got NULL");
  return layout->layout;
}

template <class T>
T& target(T* pointer, const char* argument) {
  if (!pointer) throw ValueError(std::string(argument) + ": expected where to write, got NULL");
  return *pointer;
}

// A message that has `nbytes` bytes, as its sender or its buffer says.
void check_nbytes(const char* argument, int64_t nbytes, int64_t expected) {
  if (nbytes != expected) {
    throw ValueError(std::string(argument) + ": expected " + std::to_string(expected) + ", got " +
                     std::to_string(nbytes));
  }
}

void check_count(int64_t count) {
  if (count < 1 || count > INT32_MAX) {
    throw ValueError("count: expected 1 <= count < 2**31, got " + std::to_string(count));
  }
}

// Where a call's pointers point, and what it runs on.
class Caller {
 public:
  explicit Caller(const tgk_stream* stream) {
    if (!stream) return;
    const tgk_stream given = known_fields(stream, offsetof(tgk_stream, scratch), "stream");
    if (given.device_type == TGK_DEVICE_CUDA && cuda::is_built()) {
      if (given.device_id < 0) {
        throw ValueError("stream.device_id: expected 0 or more, got " + std::to_string(given.device_id));
      }
      if (given.scratch_nbytes < 0) {
        throw ValueError("stream.scratch_nbytes: expected 0 or more, got " + std::to_string(given.scratch_nbytes));
      }
      device_ = given.device_id;
      queue_.stream = given.handle;
      queue_.scratch = output("stream.scratch", given.scratch, given.scratch_nbytes, Element::uint8);
      return;
    }
    if (given.device_type != TGK_DEVICE_CPU) {
      throw UnsupportedError(
          "stream.device_type: this build has kernels for host memory alone (TGK_DEVICE_CPU, or NULL for "
          "stream), got " +
          std::to_string(given.device_type));
    }
    if (given.device_id != 0) {
      throw ValueError("stream.device_id: expected 0 for host memory, got " + std::to_string(given.device_id));
    }
    if (given.handle) throw ValueError("stream.handle: expected NULL, for host memory has no streams");
    if (given.scratch || given.scratch_nbytes != 0) throw ValueError("stream.scratch: expected NULL for host memory");
  }

  const Queue* queue() const { return device_ == kHost ? nullptr : &queue_; }
  int32_t device() const { return device_; }

  Array input(const char* argument, const void* pointer, int64_t size, Element element) const {
    return array_at(argument, pointer, size, element, false);
  }

  Array output(const char* argument, void* pointer, int64_t size, Element element) const {
    return array_at(argument, pointer, size, element, true);
  }

  // The runtime's arrays have no const: what is not `writable` is not written.
  Array array_at(const char* argument, const void* pointer, int64_t size, Element element, bool writable,
                 int64_t place = -1) const {
    Array array{argument, place,  static_cast<unsigned char*>(const_cast<void*>(pointer)), size, element,
                writable, device_};
    if (!pointer && size > 0) {
      throw ValueError(array.name() + ": expected " + std::to_string(size) + " elements, got NULL");
    }
    return array;
  }

  template <class Pointer>
  Arrays bucket_of(const Layout& layout, const char* argument, Pointer const* pointers, int64_t count, Element element,
                   bool writable) const {
    const bool flat = count == 1;
    if (!flat && (layout.is_shard() || count != layout.layers())) {
      throw ValueError(std::string(argument) + ": expected 1 pointer (a flat array)" +
                       (layout.is_shard() ? " for the layout of a shard"
                                          : " or " + std::to_string(layout.layers()) + " (the layers)") +
                       ", got " + std::to_string(count));
    }
    Arrays arrays;
    arrays.reserve(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i) {
      const int64_t size = flat ? layout.size() : layout.sizes()[static_cast<size_t>(i)];
      arrays.push_back(array_at(argument, pointers ? pointers[i] : nullptr, size, element, writable, flat ? -1 : i));
    }
    return arrays;
  }

  Arrays messages_of(const void* const* messages, int64_t count, int64_t nbytes) const {
    check_count(count);
    Arrays arrays;
    arrays.reserve(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i) {
      arrays.push_back(array_at("messages", messages ? messages[i] : nullptr, nbytes, Element::uint8, false, i));
    }
    return arrays;
  }

 private:
  int32_t device_ = kHost;
  Queue queue_{};
};

// `count` has been checked.
std::vector<double> weights_of(const double* weights, int64_t count) {
  if (!weights) return std::vector<double>(static_cast<size_t>(count), 1.0);
  return std::vector<double>(weights, weights + count);
}

// ---- numbers in

Element element_at(int32_t dtype) {
  if (dtype < TGK_FLOAT32 || dtype > TGK_FLOAT64) throw TypeError("dtype: unknown code " + std::to_string(dtype));
  return static_cast<Element>(dtype);
}
static_assert(static_cast<int>(Element::float32) == TGK_FLOAT32 && static_cast<int>(Element::float16) == TGK_FLOAT16 &&
                  static_cast<int>(Element::bfloat16) == TGK_BFLOAT16 &&
                  static_cast<int>(Element::float64) == TGK_FLOAT64,
              "the header's dtypes are the runtime's");
static_assert(static_cast<int>(Packing::two_bit) == TGK_PACKING_TWO_BIT &&
                  static_cast<int>(Packing::base3) == TGK_PACKING_BASE3 &&
                  static_cast<int>(Packing::float32) == TGK_PACKING_FLOAT32 &&
                  static_cast<int>(Packing::counts4) == TGK_PACKING_COUNTS4 &&
                  static_cast<int>(Packing::counts8) == TGK_PACKING_COUNTS8 &&
                  static_cast<int>(Packing::counts16) == TGK_PACKING_COUNTS16,
              "the header's packings are the contract's");

Packing packing_at(int32_t code, int64_t place = -1) {
  if (code < TGK_PACKING_TWO_BIT || code > TGK_PACKING_COUNTS16) {
    throw ValueError(named(place < 0 ? "packing" : "packings", place) + ": unknown code " + std::to_string(code));
  }
  return static_cast<Packing>(code);
}

Measure measure_of(double clip, int32_t center) {
  const FloatEnvironment environment;  // a caller that flushes denormals has small numbers compare equal to 0
  if (!(clip >= 0.0)) {
    char text[32];
    snprintf(text, sizeof text, "%g", clip);
    throw ValueError(std::string("clip: expected a number > 0, or 0 for none, got ") + text);
  }
  if (center != 0 && center != 1) throw ValueError("center: expected 0 or 1, got " + std::to_string(center));
  return Measure{clip, center == 1};
}

void check_size_between(int64_t n, int64_t log2_most) {
  if (n < 0 || n > int64_t{1} << log2_most) {
    throw ValueError("n: expected 0 <= n <= 2**" + std::to_string(log2_most) + ", got " + std::to_string(n));
  }
}

void check_workers(int64_t workers) {
  const int64_t most = most_workers(Packing::counts16);
  if (workers < 1 || workers > most) {
    throw ValueError("workers: expected 1 to " + std::to_string(most) + ", got " + std::to_string(workers));
  }
}

constexpr int64_t kLog2LargestLayer = 36;
static_assert(int64_t{1} << kLog2LargestLayer == kLargestLayer, "as the contract has it");
constexpr int64_t kLog2LargestBucket = 56;

Layout layout_of_layer(int64_t n, int32_t packing) {
  check_size_between(n, kLog2LargestLayer);
  return Layout({n}, {packing_at(packing)}, 0, 1, -1);
}

DrawBase draw_at(uint64_t seed, uint64_t offset, int64_t layer, int64_t layers) {
  return DrawBase{seed, offset, layer_word(layer, layers, [&] { return std::to_string(layer); })};
}

// What ternarize, encode and repack are told beside x.
class Told {
 public:
  Told(const tgk_options* options, const tgk_options& defaults, const Layout& layout, const Caller& caller) {
    const tgk_options given = options ? known_fields(options, offsetof(tgk_options, seed_at), "options") : defaults;
    measure = measure_of(given.clip, 0);
    draw = draw_at(given.seed, given.offset, given.layer, layout.layers());
    if (caller.queue()) {
      draw.seed_at = reinterpret_cast<const unsigned char*>(given.seed_at);
      draw.offset_at = reinterpret_cast<const unsigned char*>(given.offset_at);
      draw.seed_device = draw.offset_device = caller.device();
    } else {
      if (given.seed_at) draw.seed = load<uint64_t>(given.seed_at, 0);
      if (given.offset_at) draw.offset = load<uint64_t>(given.offset_at, 0);
    }
    if (!given.scale && !given.limit) return;
    scales_.scale = caller.input("options.scale", given.scale, layout.groups(), Element::float32);
    scales_.limit = caller.input("options.limit", given.limit, layout.groups(), Element::float32);
    passed_ = true;
  }
  const PassedScales* passed() const { return passed_ ? &scales_ : nullptr; }

  Measure measure{};
  DrawBase draw{};

 private:
  PassedScales scales_{};
  bool passed_ = false;
};

void decode_into(const Layout& layout, const void* data, int64_t nbytes, double weight, bool accumulate,
                 void* const* out, int64_t out_count, int32_t dtype, const tgk_stream* stream) {
  const Caller caller(stream);
  check_nbytes("nbytes", nbytes, layout.nbytes());
  decode(layout, caller.input("data", data, nbytes, Element::uint8), weight, accumulate,
         caller.bucket_of(layout, "out", out, out_count, element_at(dtype), true), caller.queue());
}

int64_t query(const tgk_layout* layout, int64_t (Layout::*property)() const) {
  return layout ? (layout->layout.*property)() : -1;
}

}  // namespace

}  // namespace terngrad

using namespace terngrad;

const char* tgk_status_name(tgk_status status) noexcept {
  switch (status) {
    case TGK_OK: return "TGK_OK";
    case TGK_ERROR_VALUE: return "TGK_ERROR_VALUE";
    case TGK_ERROR_TYPE: return "TGK_ERROR_TYPE";
    case TGK_ERROR_CORRUPT: return "TGK_ERROR_CORRUPT";
    case TGK_ERROR_UNSUPPORTED: return "TGK_ERROR_UNSUPPORTED";
    case TGK_ERROR_MEMORY: return "TGK_ERROR_MEMORY";
    case TGK_ERROR_INTERNAL: return "TGK_ERROR_INTERNAL";
    case TGK_ERROR_DEVICE: return "TGK_ERROR_DEVICE";
    default: return "unknown";
  }
}

const char* tgk_last_error() noexcept { return last_error; }

int32_t tgk_abi_version() noexcept { return TGK_ABI_VERSION; }

const char* tgk_version() noexcept { return TERNGRAD_VERSION; }

const char* tgk_isa() noexcept {
  const char* isa = nullptr;
  guarded([&] { isa = kernels().isa; });
  return isa;
}

int32_t tgk_get_num_threads() noexcept {
  int32_t count = 0;
  guarded([&] { count = get_num_threads(); });
  return count;
}

tgk_status tgk_set_num_threads(int32_t count) noexcept {
  return guarded([&] { set_num_threads(count); });
}

// ---- one layer

tgk_status tgk_layer_nbytes(int64_t n, int32_t packing, int64_t* nbytes) noexcept {
  return guarded([&] { target(nbytes, "nbytes") = layout_of_layer(n, packing).nbytes(); });
}

tgk_status tgk_encode_layer(const void* x, int64_t n, int32_t dtype, int32_t packing, double clip, uint64_t seed,
                            uint64_t offset, int64_t layer, void* data, int64_t nbytes,
                            const tgk_stream* stream) noexcept {
  return guarded([&] {
    const Caller caller(stream);
    const Layout layout = layout_of_layer(n, packing);
    check_nbytes("nbytes", nbytes, layout.nbytes());
    encode(layout, {caller.input("x", x, n, element_at(dtype))}, measure_of(clip, 0), nullptr,
           draw_at(seed, offset, layer, 1), caller.output("data", data, nbytes, Element::uint8), caller.queue());
  });
}

tgk_status tgk_decode_layer(const void* data, int64_t nbytes, int32_t packing, double weight, void* out, int64_t n,
                            int32_t dtype, const tgk_stream* stream) noexcept {
  return guarded(
      [&] { decode_into(layout_of_layer(n, packing), data, nbytes, weight, false, &out, 1, dtype, stream); });
}

tgk_status tgk_accumulate_layer(const void* data, int64_t nbytes, int32_t packing, double weight, void* out, int64_t n,
                                int32_t dtype, const tgk_stream* stream) noexcept {
  return guarded([&] { decode_into(layout_of_layer(n, packing), data, nbytes, weight, true, &out, 1, dtype, stream); });
}

// ---- layouts

tgk_status tgk_layout_create(const int64_t* sizes, int64_t layers, const int32_t* packings, int64_t packing_count,
                             int64_t block, int64_t shards, int64_t shard, tgk_layout** layout) noexcept {
  return guarded([&] {
    tgk_layout*& created = target(layout, "layout");
    if (layers < 0 || layers > int64_t{1} << 31) {
      throw ValueError("layers: expected 0 <= layers <= 2**31, got " + std::to_string(layers));
    }
    if (!sizes && layers > 0) throw ValueError("sizes: expected " + std::to_string(layers) + ", got NULL");
    if (packing_count != 1 && packing_count != layers) {
      throw ValueError("packing_count: expected 1 or " + std::to_string(layers) + " (one per layer), got " +
                       std::to_string(packing_count));
    }
    if (!packings && packing_count > 0) {
      throw ValueError("packings: expected " + std::to_string(packing_count) + ", got NULL");
    }
    for (int64_t i = 0; i < layers; ++i) {
      if (sizes[i] >= 0 && sizes[i] <= kLargestLayer) continue;
      throw ValueError("sizes[" + std::to_string(i) + "]: expected 0 to 2**36, got " + std::to_string(sizes[i]));
    }
    if (shard < -1 || (shard >= shards && shards > 0)) {
      throw ValueError("shard: expected -1 (all of them) or 0 <= shard < " + std::to_string(shards) + ", got " +
                       std::to_string(shard));
    }
    std::vector<Packing> codes;
    codes.reserve(static_cast<size_t>(packing_count));
    for (int64_t i = 0; i < packing_count; ++i) codes.push_back(packing_at(packings[i], i));
    created = new tgk_layout(std::vector<int64_t>(sizes, sizes + layers), codes, block, shards, shard);
  });
}

tgk_status tgk_layout_with_ternary(const tgk_layout* layout, int32_t packing, tgk_layout** result) noexcept {
  return guarded([&] {
    geometry(layout);
    tgk_layout*& created = target(result, "result");
    const Packing ternary = packing_at(packing);
    if (ternary == Packing::float32) throw ValueError("packing: expected that of trits or counts, got float32");
    std::vector<Packing> packings = layout->packings;
    for (Packing& each : packings) {
      if (each != Packing::float32) each = ternary;
    }
    created = new tgk_layout(layout->sizes, packings, layout->block, layout->shards, layout->shard);
  });
}

void tgk_layout_destroy(tgk_layout* layout) noexcept { delete layout; }

int64_t tgk_layout_nbytes(const tgk_layout* layout) noexcept { return query(layout, &Layout::nbytes); }

int64_t tgk_layout_size(const tgk_layout* layout) noexcept { return query(layout, &Layout::size); }

int64_t tgk_layout_layers(const tgk_layout* layout) noexcept { return query(layout, &Layout::layers); }

int64_t tgk_layout_groups(const tgk_layout* layout) noexcept { return query(layout, &Layout::groups); }

int64_t tgk_layout_pieces(const tgk_layout* layout) noexcept {
  return layout ? static_cast<int64_t>(layout->layout.pieces().size()) : -1;
}

tgk_status tgk_layout_piece(const tgk_layout* layout, int64_t index, tgk_piece* piece) noexcept {
  return guarded([&] {
    const std::vector<Piece>& pieces = geometry(layout).pieces();
    if (index < 0 || index >= static_cast<int64_t>(pieces.size())) {
      throw ValueError("index: expected 0 <= index < " + std::to_string(pieces.size()) + ", got " +
                       std::to_string(index));
    }
    const size_t struct_size = known_fields(&target(piece, "piece"), sizeof(tgk_piece), "piece").struct_size;
    const Piece& found = pieces[static_cast<size_t>(index)];
    *piece = tgk_piece{struct_size,
                       found.layer,
                       found.first,
                       found.size,
                       found.at,
                       found.group,
                       found.scale_at,
                       found.payload_at,
                       payload_bytes(found.packing, found.size),
                       static_cast<int32_t>(found.packing),
                       0};
  });
}

// ---- operations

tgk_status tgk_scratch_nbytes(const tgk_layout* layout, int32_t measured, int64_t pointers, int64_t* nbytes) noexcept {
  return guarded([&] {
    const Layout& shape = geometry(layout);
    if (measured != 0 && measured != 1) {
      throw ValueError("measured: expected 0 or 1, got " + std::to_string(measured));
    }
    if (pointers < 0) throw ValueError("pointers: expected 0 or more, got " + std::to_string(pointers));
    target(nbytes, "nbytes") = scratch_bytes(shape, measured == 1, pointers);
  });
}

tgk_status tgk_scales(const tgk_layout* layout, const void* const* x, int64_t count, int32_t dtype, double clip,
                      int32_t center, float* scale, float* limit, const tgk_stream* stream) noexcept {
  return guarded([&] {
    const Caller caller(stream);
    const Layout& shape = geometry(layout);
    scales(shape, caller.bucket_of(shape, "x", x, count, element_at(dtype), false), measure_of(clip, center),
           caller.output("scale", scale, shape.groups(), Element::float32),
           caller.output("limit", limit, shape.groups(), Element::float32), caller.queue());
  });
}

tgk_status tgk_clip(const tgk_layout* layout, const void* const* x, int64_t count, int32_t dtype, double clip,
                    int32_t center, const float* limit, void* const* out, int64_t out_count,
                    const tgk_stream* stream) noexcept {
  return guarded([&] {
    const Caller caller(stream);
    const Layout& shape = geometry(layout);
    const Element element = element_at(dtype);
    // The runtime looks at limits alone, but takes both.
    const Array limits = caller.input("limit", limit, limit ? shape.groups() : 0, Element::float32);
    const PassedScales passed{limits, limits};
    terngrad::clip(shape, caller.bucket_of(shape, "x", x, count, element, false), measure_of(clip, center),
                   limit ? &passed : nullptr, caller.bucket_of(shape, "out", out, out_count, element, true),
                   caller.queue());
  });
}

tgk_status tgk_ternarize(const tgk_layout* layout, const void* const* x, int64_t count, int32_t dtype,
                         const tgk_options* options, int8_t* const* trits, int64_t trits_count, float* scale,
                         const tgk_stream* stream) noexcept {
  return guarded([&] {
    const Caller caller(stream);
    const Layout& shape = geometry(layout);
    const Told told(options, TGK_OPTIONS_INIT, shape, caller);
    ternarize(shape, caller.bucket_of(shape, "x", x, count, element_at(dtype), false), told.measure, told.passed(),
              told.draw, caller.bucket_of(shape, "trits", trits, trits_count, Element::int8, true),
              caller.output("scale", scale, shape.groups(), Element::float32), caller.queue());
  });
}

tgk_status tgk_encode(const tgk_layout* layout, const void* const* x, int64_t count, int32_t dtype,
                      const tgk_options* options, void* data, int64_t nbytes, const tgk_stream* stream) noexcept {
  return guarded([&] {
    const Caller caller(stream);
    const Layout& shape = geometry(layout);
    const Told told(options, TGK_OPTIONS_INIT, shape, caller);
    check_nbytes("nbytes", nbytes, shape.nbytes());
    encode(shape, caller.bucket_of(shape, "x", x, count, element_at(dtype), false), told.measure, told.passed(),
           told.draw, caller.output("data", data, nbytes, Element::uint8), caller.queue());
  });
}

tgk_status tgk_decode(const tgk_layout* layout, const void* data, int64_t nbytes, double weight, void* const* out,
                      int64_t out_count, int32_t dtype, const tgk_stream* stream) noexcept {
  return guarded([&] { decode_into(geometry(layout), data, nbytes, weight, false, out, out_count, dtype, stream); });
}

tgk_status tgk_accumulate(const tgk_layout* layout, const void* data, int64_t nbytes, double weight, void* const* out,
                          int64_t out_count, int32_t dtype, const tgk_stream* stream) noexcept {
  return guarded([&] { decode_into(geometry(layout), data, nbytes, weight, true, out, out_count, dtype, stream); });
}

tgk_status tgk_decode_sum(const tgk_layout* layout, const void* const* messages, int64_t count, int64_t nbytes,
                          const double* weights, void* const* out, int64_t out_count, int32_t dtype,
                          const tgk_stream* stream) noexcept {
  return guarded([&] {
    const Caller caller(stream);
    const Layout& shape = geometry(layout);
    check_nbytes("nbytes", nbytes, shape.nbytes());
    const Arrays terms = caller.messages_of(messages, count, nbytes);
    decode_sum(shape, terms, weights_of(weights, count),
               caller.bucket_of(shape, "out", out, out_count, element_at(dtype), true), caller.queue());
  });
}

tgk_status tgk_counts_packing(int64_t workers, int32_t* packing) noexcept {
  return guarded([&] {
    check_workers(workers);
    Packing narrowest = Packing::counts4;
    while (workers > most_workers(narrowest)) narrowest = static_cast<Packing>(static_cast<int>(narrowest) + 1);
    target(packing, "packing") = static_cast<int32_t>(narrowest);
  });
}

tgk_status tgk_sum_trits(const tgk_layout* const* layouts, const void* const* messages, const int64_t* workers,
                         int64_t count, const tgk_layout* result, void* data, int64_t nbytes,
                         const tgk_stream* stream) noexcept {
  return guarded([&] {
    const Caller caller(stream);
    const Layout& shape = geometry(result, "result");
    check_count(count);
    if (!layouts) throw ValueError("layouts: expected " + std::to_string(count) + ", got NULL");
    std::vector<Summand> summands;
    summands.reserve(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i) {
      const Layout& from = geometry(layouts[i], "layouts", i);
      const void* message = messages ? messages[i] : nullptr;
      summands.push_back(Summand{&from, caller.array_at("messages", message, from.nbytes(), Element::uint8, false, i),
                                 workers ? workers[i] : 1});
    }
    check_nbytes("nbytes", nbytes, shape.nbytes());
    sum_trits(summands, shape, caller.output("data", data, nbytes, Element::uint8), caller.queue());
  });
}

tgk_status tgk_repack(const tgk_layout* layout, const void* const* messages, int64_t count, int64_t nbytes,
                      const double* weights, const tgk_options* options, const tgk_layout* result, void* data,
                      int64_t data_nbytes, const tgk_stream* stream) noexcept {
  return guarded([&] {
    const Caller caller(stream);
    const Layout& shape = geometry(layout);
    const Layout& target_shape = geometry(result, "result");
    const Told told(options, TGK_REPACK_OPTIONS_INIT, shape, caller);
    check_nbytes("nbytes", nbytes, shape.nbytes());
    check_nbytes("data_nbytes", data_nbytes, target_shape.nbytes());
    const Arrays terms = caller.messages_of(messages, count, nbytes);
    repack(shape, terms, weights_of(weights, count), told.measure, told.passed(), told.draw, target_shape,
           caller.output("data", data, data_nbytes, Element::uint8), caller.queue());
  });
}

tgk_status tgk_validate(const tgk_layout* layout, const void* data, int64_t nbytes, int64_t workers,
                        const tgk_stream* stream) noexcept {
  return guarded([&] {
    const Caller caller(stream);
    const Layout& shape = geometry(layout);
    if (nbytes < 0) throw ValueError("nbytes: expected 0 or more, got " + std::to_string(nbytes));
    check_workers(workers);
    validate(shape, caller.input("data", data, nbytes, Element::uint8), workers, caller.queue());
  });
}

// ---- payloads alone

tgk_status tgk_payload_nbytes(int64_t n, int32_t packing, int64_t* nbytes) noexcept {
  return guarded([&] {
    check_size_between(n, kLog2LargestBucket);
    target(nbytes, "nbytes") = payload_bytes(packing_at(packing), n);
  });
}

tgk_status tgk_pack(const int8_t* trits, int64_t n, int32_t packing, void* payload, int64_t nbytes,
                    const tgk_stream* stream) noexcept {
  return guarded([&] {
    const Caller caller(stream);
    check_size_between(n, kLog2LargestBucket);
    const Packing form = packing_at(packing);
    check_nbytes("nbytes", nbytes, payload_bytes(form, n));
    pack(caller.input("trits", trits, n, Element::int8), form,
         caller.output("payload", payload, nbytes, Element::uint8), caller.queue());
  });
}

tgk_status tgk_unpack(const void* payload, int64_t nbytes, int32_t packing, int8_t* trits, int64_t n,
                      const tgk_stream* stream) noexcept {
  return guarded([&] {
    const Caller caller(stream);
    check_size_between(n, kLog2LargestBucket);
    const Packing form = packing_at(packing);
    check_nbytes("nbytes", nbytes, payload_bytes(form, n));
    unpack(caller.input("payload", payload, nbytes, Element::uint8), form,
           caller.output("trits", trits, n, Element::int8), caller.queue());
  });
}
