// The operations on a CUDA device: puts kernels on the caller's stream. Nothing waits for the device but validate, and
// nothing is allocated but a layout's tables, once for each device.
#include "cuda.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <mutex>
#include <utility>

#include "../kernels/kernels_cuda.h"
#include "errors.h"

namespace terngrad {

namespace {

using cuda::Geometry;

// Throws what CUDA said of a call, and clears it, so that the caller's own next call does not see it.
void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();
  throw DeviceError(std::string("CUDA: ") + what + ": " + cudaGetErrorString(error));
}

#if defined(TERNGRAD_CUDA_EMULATED)
void enter(int32_t device) { check(cudaSetDevice(device), "the arrays' device"); }
void leave(int32_t) {}
#else
// A function of the driver, which this library is not linked with: it also loads where there is none.
template <class Function>
Function* of_driver(const char* name) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result{};
#if CUDART_VERSION >= 12050
  check(cudaGetDriverEntryPointByVersion(name, &found, 12000, cudaEnableDefault, &result), name);
#else
  check(cudaGetDriverEntryPoint(name, &found, cudaEnableDefault, &result), name);
#endif
  if (!found) throw DeviceError(std::string("CUDA: the driver has no ") + name);
  return reinterpret_cast<Function*>(found);
}

void check_driver(int result, const char* what) {
  if (result != 0) throw DeviceError(std::string("CUDA: ") + what + ": error " + std::to_string(result));
}

// The context of the arrays' device becomes the current one, and after it the one before again. (To set the device
// before again would make a context on it, of some 500 MB, where the caller has none.)
void enter(int32_t device) {
  static const auto retain = of_driver<int(void**, int)>("cuDevicePrimaryCtxRetain");
  static const auto push = of_driver<int(void*)>("cuCtxPushCurrent");
  void* context = nullptr;
  check_driver(retain(&context, device), "the arrays' device");
  check_driver(push(context), "the arrays' device");
}

void leave(int32_t device) {
  static const auto pop = of_driver<int(void**)>("cuCtxPopCurrent");
  static const auto release = of_driver<int(int)>("cuDevicePrimaryCtxRelease");
  void* context = nullptr;
  pop(&context);
  release(device);
}
#endif

// The current device, for the length of a scope.
class OnDevice {
 public:
  explicit OnDevice(int32_t device) : device_(device) {
    int before = 0;
    check(cudaGetDevice(&before), "the current device");
    changed_ = before != device;
    if (changed_) enter(device);
  }
  ~OnDevice() {
    if (changed_) leave(device_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int32_t device_;
  bool changed_ = false;
};

// For the length of a scope this thread may allocate, copy and wait although a stream is being captured: what it does
// then is no part of the graph.
class BesideCaptures {
 public:
  BesideCaptures() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~BesideCaptures() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  BesideCaptures(const BesideCaptures&) = delete;
  BesideCaptures& operator=(const BesideCaptures&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

bool is_capturing(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(stream, &status), "the stream");
  return status != cudaStreamCaptureStatusNone;
}

[[noreturn]] void throw_too_large() { throw ValueError("layout: more than a CUDA device takes in one call"); }

int64_t stripes_in(int64_t n) { return (n + kStripe - 1) / kStripe; }

// ---- a layout's tables

// What of a device the tables depend on.
struct Processors {
  int64_t blocks;        // of one launch for both passes that run side by side
  int64_t kept_stripes;  // of float32 that the second-level cache keeps
};

// Items in the order in which blocks take them. A group is encoded as soon as `blocks` stripes that come after it
// are under way: by then nobody waits long for its scale, and the second-level cache still has it. From its last tile
// to its first, since of a large group the cache has the last ones.
class Order {
 public:
  explicit Order(Processors processors) : processors_(processors) {}

  // A group whose tiles of the message end before `last`; one that it shares with the next group counts as that one's.
  void add(int64_t measured_tile, int64_t stripes, int64_t last) {
    for (int64_t stripe = 0; stripe < stripes; ++stripe) {
      const int64_t place = measured_tile * cuda::kWarps + stripe;
      const bool passes = stripes - stripe > processors_.kept_stripes;
      items_.push_back(static_cast<uint32_t>(place) | (passes ? cuda::kItemPasses : 0));
      ++stripes_;
      encode(processors_.blocks);
    }
    waiting_.push_back(Waiting{stripes_, last});
  }

  const std::vector<uint32_t>& done() {
    encode(0);
    return items_;
  }

 private:
  struct Waiting {
    int64_t stripes;  // up to its last one
    int64_t last;
  };

  void encode(int64_t behind) {
    for (; next_ < waiting_.size() && waiting_[next_].stripes + behind <= stripes_; ++next_) {
      const int64_t last = waiting_[next_].last;
      for (int64_t tile = last; tile-- > tiles_;) items_.push_back(static_cast<uint32_t>(tile) | cuda::kItemEncodes);
      tiles_ = last;
    }
  }

  Processors processors_;
  std::vector<uint32_t> items_;
  std::vector<Waiting> waiting_;
  size_t next_ = 0;
  int64_t stripes_ = 0;
  int64_t tiles_ = 0;
};

// As they lie on the device, one behind the other.
class Tables {
 public:
  Tables(const Layout& layout, Processors processors) {
    const std::vector<Piece>& pieces = layout.pieces();
    if (pieces.size() > static_cast<size_t>(INT32_MAX)) throw_too_large();
    std::vector<int64_t> piece_units;
    std::vector<cuda::Group> groups;
    std::vector<int64_t> group_tiles;
    std::vector<cuda::Gap> gaps;
    for (size_t i = 0; i < pieces.size(); ++i) {
      piece_units.push_back(geometry_.units);
      geometry_.units += std::max<int64_t>(1, (pieces[i].size + kUnit - 1) / kUnit);
      const auto index = static_cast<int64_t>(i);
      if (i == 0 || pieces[i].group != pieces[i - 1].group) groups.push_back(cuda::Group{index, index, 0, 0});
      groups.back().last_piece = index + 1;
      groups.back().size += pieces[i].size;
    }
    geometry_.tiles = (geometry_.units + cuda::kWarps - 1) / cuda::kWarps;
    for (cuda::Group& group : groups) {
      group_tiles.push_back(geometry_.measured_tiles);
      geometry_.measured_tiles += std::max<int64_t>(1, (group.size + cuda::kMeasured - 1) / cuda::kMeasured);
      group.first_stripe = geometry_.stripes;
      geometry_.stripes += stripes_in(group.size);
      geometry_.most_stripes = std::max(geometry_.most_stripes, stripes_in(group.size));
    }
    for (const auto& [begin, end] : layout.gaps()) gaps.push_back(cuda::Gap{begin, end});
    std::vector<uint32_t> items;
    if (geometry_.measured_tiles * cuda::kWarps + geometry_.tiles <= cuda::kMostItems) {
      Order order(processors);
      for (size_t i = 0; i < groups.size(); ++i) {
        const auto first = static_cast<size_t>(groups[i].first_piece);
        const auto last = static_cast<size_t>(groups[i].last_piece);
        const bool carries = pieces[first].packing == Packing::float32;
        order.add(group_tiles[i], carries ? 0 : stripes_in(groups[i].size),
                  last < pieces.size() ? piece_units[last] / cuda::kWarps : geometry_.tiles);
      }
      items = order.done();
    }
    geometry_.items = static_cast<int64_t>(items.size());
    geometry_.piece_count = static_cast<int32_t>(pieces.size());
    geometry_.group_count = static_cast<int32_t>(groups.size());
    geometry_.gap_count = static_cast<int64_t>(gaps.size());
    offsets_[0] = add(pieces);
    offsets_[1] = add(piece_units);
    offsets_[2] = add(groups);
    offsets_[3] = add(group_tiles);
    offsets_[4] = add(gaps);
    offsets_[5] = add(items);
  }

  const std::vector<unsigned char>& bytes() const { return bytes_; }

  Geometry at(const unsigned char* memory) const {
    Geometry geometry = geometry_;
    geometry.pieces = reinterpret_cast<const Piece*>(memory + offsets_[0]);
    geometry.piece_units = reinterpret_cast<const int64_t*>(memory + offsets_[1]);
    geometry.groups = reinterpret_cast<const cuda::Group*>(memory + offsets_[2]);
    geometry.group_tiles = reinterpret_cast<const int64_t*>(memory + offsets_[3]);
    geometry.gaps = reinterpret_cast<const cuda::Gap*>(memory + offsets_[4]);
    geometry.order = reinterpret_cast<const uint32_t*>(memory + offsets_[5]);
    return geometry;
  }

 private:
  template <class T>
  size_t add(const std::vector<T>& values) {
    const size_t begin = bytes_.size();
    bytes_.resize(begin + (values.size() * sizeof(T) + 15) / 16 * 16);
    if (!values.empty()) std::memcpy(bytes_.data() + begin, values.data(), values.size() * sizeof(T));
    return begin;
  }

  Geometry geometry_{};
  size_t offsets_[6];
  std::vector<unsigned char> bytes_;
};

}  // namespace

class OnDevices {
 public:
  OnDevices() = default;
  OnDevices(const OnDevices&) = delete;
  OnDevices& operator=(const OnDevices&) = delete;

  // To give memory back waits for the device, whose kernels may still read it; the next copy of tables, which waits
  // too, does so. What a captured graph may read when the layout is gone stays. A forked child has no CUDA.
  ~OnDevices() {
    if (getpid() != process_) return;
    const std::lock_guard<std::mutex> guard(dropped().lock);
    for (const Copy& copy : copies_) {
      if (!copy.captured) dropped().memory.push_back(copy.memory);
    }
  }

  const Geometry& on(const Layout& layout, int32_t device, cudaStream_t stream) {
    auto found = std::find_if(copies_.begin(), copies_.end(), [&](const Copy& copy) { return copy.device == device; });
    if (found == copies_.end()) {
      copies_.push_back(copied(layout, device));
      found = copies_.end() - 1;
    }
    found->captured = found->captured || is_capturing(stream);
    return found->geometry;
  }

 private:
  struct Copy {
    int32_t device;
    void* memory;
    bool captured;
    Geometry geometry;
  };

  struct Dropped {
    std::mutex lock;
    std::vector<void*> memory;
  };

  // Never destroyed, since layouts may be after it.
  static Dropped& dropped() {
    static auto* const all = new Dropped;
    return *all;
  }

  static void free_dropped() {
    std::vector<void*> memory;
    {
      const std::lock_guard<std::mutex> guard(dropped().lock);
      memory.swap(dropped().memory);
    }
    for (void* each : memory) {
      if (cudaFree(each) != cudaSuccess) cudaGetLastError();
    }
  }

  static int64_t attribute(cudaDeviceAttr which, int32_t device) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, which, device), "what the device is");
    return value;
  }

  static void upload(const std::vector<unsigned char>& bytes, void* memory) {
    cudaStream_t own = nullptr;
    check(cudaStreamCreateWithFlags(&own, cudaStreamNonBlocking), "a stream for a layout's tables");
    cudaError_t error = cudaMemcpyAsync(memory, bytes.data(), bytes.size(), cudaMemcpyHostToDevice, own);
    if (error == cudaSuccess) error = cudaStreamSynchronize(own);
    cudaStreamDestroy(own);
    check(error, "the copy of a layout's tables");
  }

  Copy copied(const Layout& layout, int32_t device) {
    const BesideCaptures beside;
    free_dropped();
    // Five eighths of the second-level cache; what is written and the tables want their share.
    const int64_t kept_bytes = attribute(cudaDevAttrL2CacheSize, device) / 8 * 5;
    const int64_t processors = attribute(cudaDevAttrMultiProcessorCount, device);
    // Blocks that sum a stripe together have 34 KB of shared memory each.
    const int64_t few_blocks = 4 * processors;
    const Tables tables(layout, Processors{cuda::kBlocksAtOnce * processors, kept_bytes / (4 * kStripe)});
    Copy copy{device, nullptr, false, {}};
    copies_.reserve(copies_.size() + 1);
    check(cudaMalloc(&copy.memory, std::max<size_t>(tables.bytes().size(), 1)), "memory for a layout's tables");
    try {
      upload(tables.bytes(), copy.memory);
    } catch (...) {
      if (cudaFree(copy.memory) != cudaSuccess) cudaGetLastError();
      throw;
    }
    copy.geometry = tables.at(static_cast<const unsigned char*>(copy.memory));
    copy.geometry.kept_bytes = kept_bytes;
    copy.geometry.few_blocks = few_blocks;
    return copy;
  }

  std::vector<Copy> copies_;
  pid_t process_ = getpid();
};

namespace {

// By value: another thread may add a device's copy at any time.
Geometry geometry_of(const Layout& layout, int32_t device, cudaStream_t stream) {
  static std::mutex lock;
  const std::lock_guard<std::mutex> guard(lock);
  if (!layout.on_devices()) layout.on_devices() = std::make_shared<OnDevices>();
  const Geometry geometry = layout.on_devices()->on(layout, device, stream);
  if (std::max(geometry.tiles, geometry.measured_tiles) > cuda::kMostBlocks) throw_too_large();
  return geometry;
}

// ---- the caller's scratch

int64_t rounded(int64_t bytes) { return (bytes + 15) / 16 * 16; }

struct Needs {
  int64_t stripes;
  int64_t groups;

  int64_t bytes() const {
    return 2 * rounded(4 * stripes) + rounded(4 * stripes) + rounded(4 * (groups + 1)) +
           rounded(static_cast<int64_t>(sizeof(Scale)) * groups);
  }
};

class Scratch {
 public:
  explicit Scratch(const Queue& queue, int32_t device) : array_(queue.scratch), at_(queue.scratch.data) {
    if (array_.size == 0) return;
    if (array_.device != device || !array_.writable || reinterpret_cast<uintptr_t>(at_) % 16 != 0) {
      throw ValueError("scratch: expected writable memory on CUDA device " + std::to_string(device) +
                       ", at a multiple of 16");
    }
  }

  void require(int64_t bytes) const {
    if (array_.nbytes() < bytes) {
      throw ValueError("scratch: expected at least " + std::to_string(bytes) + " bytes, got " +
                       std::to_string(array_.nbytes()));
    }
  }

  template <class T>
  T* take(int64_t count) {
    const int64_t bytes = rounded(count * static_cast<int64_t>(sizeof(T)));
    require(at_ - array_.data + bytes);
    T* taken = reinterpret_cast<T*>(at_);
    at_ += bytes;
    return taken;
  }

 private:
  const Array& array_;
  unsigned char* at_;
};

// One call: its device is the current one for as long as this lives.
struct Call {
  Call(int32_t on, const Queue& queue)
      : device(on), on_device(on), stream(static_cast<cudaStream_t>(queue.stream)), scratch(queue, on) {}

  Geometry geometry(const Layout& layout) const { return geometry_of(layout, device, stream); }

  int32_t device;
  OnDevice on_device;
  cudaStream_t stream;
  Scratch scratch;
};

// ---- arguments as kernels take them

// A list on the device, in the caller's scratch; or nothing where it travels with the launch.
template <class T>
const T* uploaded(Call& call, const std::vector<T>& values) {
  T* to = call.scratch.take<T>(static_cast<int64_t>(values.size()));
  check(cuda::upload(values.data(), static_cast<int64_t>(values.size() * sizeof(T)), to, call.stream),
        "a list's upload");
  return to;
}

cuda::Bucket bucket_of(Call& call, const Layout& layout, const Arrays& arrays) {
  cuda::Bucket bucket;
  bucket.flat = nullptr;
  bucket.layers = nullptr;
  if (layout.is_shard() || (arrays.size() == 1 && arrays[0].size == layout.size())) {
    // An empty bucket's array may have no address; none is read.
    bucket.flat = arrays[0].data ? arrays[0].data : reinterpret_cast<unsigned char*>(cuda::kThreads);
    return bucket;
  }
  std::vector<unsigned char*> layers;
  layers.reserve(arrays.size());
  for (const Array& array : arrays) layers.push_back(array.data);
  if (arrays.size() <= static_cast<size_t>(cuda::kFewArrays)) {
    std::copy(layers.begin(), layers.end(), bucket.few);
  } else {
    bucket.layers = uploaded(call, layers);
  }
  return bucket;
}

cuda::Messages messages_of(Call& call, const std::vector<cuda::Message>& all) {
  cuda::Messages messages;
  messages.count = static_cast<int64_t>(all.size());
  messages.many = nullptr;
  if (all.size() <= static_cast<size_t>(cuda::kFewMessages)) {
    std::copy(all.begin(), all.end(), messages.few);
  } else {
    messages.many = uploaded(call, all);
  }
  return messages;
}

cuda::Messages messages_of(Call& call, const Geometry& geometry, const std::vector<const uint8_t*>& starts,
                           const std::vector<float>& weights) {
  std::vector<cuda::Message> all;
  all.reserve(starts.size());
  for (size_t i = 0; i < starts.size(); ++i) all.push_back(cuda::Message{starts[i], geometry.pieces, weights[i]});
  return messages_of(call, all);
}

cuda::Draws draws_of(const DrawBase& draw) {
  return cuda::Draws{draw.seed, draw.offset, reinterpret_cast<const uint32_t*>(draw.seed_at),
                     reinterpret_cast<const uint32_t*>(draw.offset_at), draw.layer};
}

// Whether the device has room for a block for each stripe at once.
bool is_small(const Geometry& geometry) { return geometry.measured_tiles * cuda::kWarps <= geometry.few_blocks; }

// Room for the sums of every stripe and group.
cuda::Sums sums_of(Call& call, const Geometry& geometry, Measure measure) {
  call.scratch.require(Needs{geometry.stripes, geometry.group_count}.bytes());
  cuda::Sums sums{};
  sums.stripes.q = call.scratch.take<float>(geometry.stripes);
  sums.stripes.s = call.scratch.take<float>(geometry.stripes);
  sums.stripes.top = call.scratch.take<uint32_t>(geometry.stripes);
  sums.stripes.clip = measure.clip;
  sums.stripes.center = measure.center;
  sums.arrived = call.scratch.take<uint32_t>(geometry.group_count + 1);
  sums.taken = sums.arrived + geometry.group_count;
  sums.scales = call.scratch.take<Scale>(geometry.group_count);
  return sums;
}

// The counters begin at 0.
cuda::Measurement counted(const Call& call, const Geometry& geometry, const cuda::Sums& sums, bool announced) {
  // A group that one block has counts nothing.
  if (announced || geometry.most_stripes > cuda::kWarps) {
    const auto bytes = static_cast<size_t>(4 * (geometry.group_count + 1));
    check(cudaMemsetAsync(sums.arrived, 0, bytes, call.stream), "counters");
  }
  return cuda::Measurement{announced, sums, 0};
}

void measure_all(const Call& call, const Geometry& geometry, const cuda::Bucket& x, DType dtype,
                 const cuda::Sums& sums) {
  if (is_small(geometry)) {
    check(cuda::sum_stripes(geometry, x, dtype, sums.stripes, call.stream), "scales");
    check(cuda::fold_stripes(geometry, sums, call.stream), "scales");
  } else {
    check(cuda::measure(geometry, x, dtype, counted(call, geometry, sums, false), call.stream), "scales");
  }
}

cuda::ScaleSource passed_source(const PassedScales& passed) {
  return cuda::ScaleSource{reinterpret_cast<const float*>(passed.scale.data),
                           reinterpret_cast<const float*>(passed.limit.data), nullptr};
}

// The scales of every group: passed, or measured now.
cuda::ScaleSource source_of(Call& call, const Geometry& geometry, const cuda::Bucket& x, DType dtype, Measure measure,
                            const PassedScales* passed) {
  if (passed) return passed_source(*passed);
  const cuda::Sums sums = sums_of(call, geometry, measure);
  measure_all(call, geometry, x, dtype, sums);
  return cuda::ScaleSource{nullptr, nullptr, sums.scales};
}

}  // namespace

int64_t scratch_bytes(const Layout& layout, bool measured, int64_t arrays) {
  int64_t bytes = 0;
  if (measured) {
    // A group's last stripe is the only one that may be partial.
    bytes += Needs{layout.size() / kStripe + layout.groups(), layout.groups()}.bytes();
    bytes = std::max<int64_t>(bytes, 16);
  }
  constexpr int64_t few = std::min(cuda::kFewArrays, cuda::kFewMessages);
  // At the most two lists of arrays and one of messages, each rounded.
  if (arrays > few) bytes += static_cast<int64_t>(sizeof(cuda::Message)) * arrays + 3 * 16;
  return bytes;
}

namespace cuda {

namespace {

std::atomic<bool> at_once{false};

}  // namespace

void set_at_once(bool on) { at_once = on; }

void scales(const Layout& layout, const Arrays& x, DType dtype, Measure measure, const Array& scale, const Array& limit,
            int32_t device, const Queue& queue) {
  if (layout.pieces().empty()) return;
  Call call(device, queue);
  const Geometry geometry = call.geometry(layout);
  const Bucket bucket = bucket_of(call, layout, x);
  Sums sums = sums_of(call, geometry, measure);
  sums.scale = reinterpret_cast<float*>(scale.data);
  sums.limit = reinterpret_cast<float*>(limit.data);
  measure_all(call, geometry, bucket, dtype, sums);
}

void clip(const Layout& layout, const Arrays& x, DType dtype, Measure measure, const PassedScales* passed,
          const Arrays& out, int32_t device, const Queue& queue) {
  if (layout.pieces().empty()) return;
  Call call(device, queue);
  const Geometry geometry = call.geometry(layout);
  const Bucket from = bucket_of(call, layout, x);
  const Bucket to = bucket_of(call, layout, out);
  const ScaleSource source = source_of(call, geometry, from, dtype, measure, passed);
  check(cuda::clip(geometry, from, dtype, source, to, call.stream), "clip");
}

void ternarize(const Layout& layout, const Arrays& x, DType dtype, Measure measure, const PassedScales* passed,
               DrawBase draw, const Arrays& trits, const Array& scale, int32_t device, const Queue& queue) {
  if (layout.pieces().empty()) return;
  Call call(device, queue);
  const Geometry geometry = call.geometry(layout);
  const Bucket from = bucket_of(call, layout, x);
  const Bucket to = bucket_of(call, layout, trits);
  const ScaleSource source = source_of(call, geometry, from, dtype, measure, passed);
  check(cuda::ternarize(geometry, from, dtype, source, draws_of(draw), to, reinterpret_cast<float*>(scale.data),
                        call.stream),
        "ternarize");
}

void encode(const Layout& layout, const Arrays& x, DType dtype, Measure measure, const PassedScales* passed,
            DrawBase draw, const Array& data, int32_t device, const Queue& queue) {
  if (layout.nbytes() == 0) return;
  Call call(device, queue);
  if (layout.pieces().empty()) {  // a shard that is nothing but a gap
    return check(cudaMemsetAsync(data.data, 0, static_cast<size_t>(layout.nbytes()), call.stream), "encode");
  }
  const Geometry geometry = call.geometry(layout);
  const Bucket bucket = bucket_of(call, layout, x);
  const Draws draws = draws_of(draw);
  if (!passed && at_once && geometry.items > 0) {
    const Measurement measurement = counted(call, geometry, sums_of(call, geometry, measure), true);
    return check(encode_at_once(geometry, bucket, dtype, measurement, draws, data.data, call.stream), "encode");
  }
  if (!passed && is_small(geometry)) {
    const StripeSums stripes = sums_of(call, geometry, measure).stripes;
    check(sum_stripes(geometry, bucket, dtype, stripes, call.stream), "scales");
    return check(encode_small(geometry, bucket, dtype, stripes, draws, data.data, call.stream), "encode");
  }
  const ScaleSource source = source_of(call, geometry, bucket, dtype, measure, passed);
  check(cuda::encode(geometry, bucket, dtype, source, draws, data.data, call.stream), "encode");
}

void decode(const Layout& layout, const std::vector<const uint8_t*>& messages, const std::vector<float>& weights,
            bool summed, bool fresh, DType dtype, const Arrays& out, int32_t device, const Queue& queue) {
  if (layout.size() == 0) return;
  Call call(device, queue);
  const Geometry geometry = call.geometry(layout);
  const Bucket to = bucket_of(call, layout, out);
  const Messages from = messages_of(call, geometry, messages, weights);
  check(summed ? cuda::decode_sum(geometry, from, fresh, dtype, to, call.stream)
               : cuda::decode(geometry, from, dtype, to, call.stream),
        "decode");
}

void repack(const Layout& layout, const std::vector<const uint8_t*>& messages, const std::vector<float>& weights,
            Measure measure, const PassedScales* passed, DrawBase draw, const Layout& result, const Array& data,
            int32_t device, const Queue& queue) {
  if (result.nbytes() == 0) return;
  Call call(device, queue);
  if (layout.pieces().empty()) {
    return check(cudaMemsetAsync(data.data, 0, static_cast<size_t>(result.nbytes()), call.stream), "repack");
  }
  const Geometry geometry = call.geometry(layout);
  const Geometry target = call.geometry(result);
  const Messages from = messages_of(call, geometry, messages, weights);
  ScaleSource source{};
  if (passed) {
    source = passed_source(*passed);
  } else {
    const Sums sums = sums_of(call, geometry, Measure{measure.clip, false});
    check(measure_sum(geometry, from, counted(call, geometry, sums, false), call.stream), "repack");
    source.measured = sums.scales;
  }
  check(encode_sum(geometry, from, source, draws_of(draw), target, data.data, call.stream), "repack");
}

void sum_trits(const std::vector<const uint8_t*>& messages, const std::vector<const Layout*>& layouts,
               const Layout& result, const Array& data, int32_t device, const Queue& queue) {
  if (result.nbytes() == 0) return;
  Call call(device, queue);
  if (result.pieces().empty()) {
    return check(cudaMemsetAsync(data.data, 0, static_cast<size_t>(result.nbytes()), call.stream), "sum_trits");
  }
  const Geometry geometry = call.geometry(result);
  std::vector<Message> all;
  all.reserve(messages.size());
  const Piece* pieces = nullptr;
  for (size_t i = 0; i < messages.size(); ++i) {
    if (i == 0 || layouts[i] != layouts[i - 1]) pieces = call.geometry(*layouts[i]).pieces;
    all.push_back(Message{messages[i], pieces, 1.0f});
  }
  const Messages from = messages_of(call, all);
  check(cuda::sum_trits(geometry, from, data.data, call.stream), "sum_trits");
}

void pack(const Array& trits, Packing packing, const Array& out, int32_t device, const Queue& queue) {
  const Call call(device, queue);
  check(cuda::pack(reinterpret_cast<const int8_t*>(trits.data), trits.size, packing, out.data, call.stream), "pack");
}

void unpack(const Array& payload, Packing packing, const Array& out, int32_t device, const Queue& queue) {
  const Call call(device, queue);
  check(cuda::unpack(payload.data, out.size, packing, reinterpret_cast<int8_t*>(out.data), call.stream), "unpack");
}

// The device says whether; the host, which then has the message, says where.
void validate(const Layout& layout, const Array& data, int64_t workers, int32_t device, const Queue& queue) {
  if (layout.nbytes() == 0) return;
  Call call(device, queue);
  if (is_capturing(call.stream))
    throw ValueError("validate: waits for its result, which a captured stream cannot give");
  uint32_t unsound = layout.pieces().empty() ? 1 : 0;
  if (unsound == 0) {
    const Geometry geometry = call.geometry(layout);
    auto* found = call.scratch.take<uint32_t>(1);
    check(cudaMemsetAsync(found, 0, sizeof *found, call.stream), "validate");
    check(cuda::validate(geometry, data.data, workers, found, call.stream), "validate");
    check(cudaMemcpyAsync(&unsound, found, sizeof unsound, cudaMemcpyDeviceToHost, call.stream), "validate");
    check(cudaStreamSynchronize(call.stream), "validate");
  }
  if (unsound == 0) return;
  std::vector<unsigned char> copy(static_cast<size_t>(data.size));
  check(cudaMemcpyAsync(copy.data(), data.data, copy.size(), cudaMemcpyDeviceToHost, call.stream), "validate");
  check(cudaStreamSynchronize(call.stream), "validate");
  Array host = data;
  host.data = copy.data();
  host.device = kHost;
  terngrad::validate(layout, host, workers);
}

Devices devices() {
  Devices found{0, {}, ""};
  int count = 0;
  cudaError_t error = cudaDriverGetVersion(&found.driver);
  if (error == cudaSuccess) error = cudaGetDeviceCount(&count);
  for (int i = 0; error == cudaSuccess && i < count; ++i) {
    cudaDeviceProp properties;
    error = cudaGetDeviceProperties(&properties, i);
    if (error == cudaSuccess) {
      found.all.push_back(
          Device{properties.name, properties.major, properties.minor, static_cast<int64_t>(properties.totalGlobalMem)});
    }
  }
  if (error != cudaSuccess) {
    cudaGetLastError();
    found.error = cudaGetErrorString(error);
  }
  return found;
}

bool is_built() { return true; }

bool is_emulated() {
#if defined(TERNGRAD_CUDA_EMULATED)
  return true;
#else
  return false;
#endif
}

}  // namespace cuda
}  // namespace terngrad
