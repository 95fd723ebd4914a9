#include "runner.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <cfenv>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "memory.h"

namespace ptx {

const char* const kClassNames[kClasses] = {"integer", "multiply", "float32", "float64", "convert", "predicate", "move",
                                           "global",  "shared",   "local",   "param",   "meet",    "branch"};

namespace {

using emulation::block_index;
using emulation::kLanes;
using emulation::place;
using emulation::thread_index;

// ---- kernels by name

struct Kernel {
  const Module* module;
  const Function* function;
  uint64_t threads = 0;  // that have run
};

std::vector<const Module*>& modules() {
  static auto* const all = new std::vector<const Module*>;
  return *all;
}
std::map<std::string, Kernel>& kernels() {
  static auto* const all = new std::map<std::string, Kernel>;
  return *all;
}
// By which the host names kernels. Objects may register them before or after the kernels themselves are there.
std::map<const void*, std::string>& stubs() {
  static auto* const all = new std::map<const void*, std::string>;
  return *all;
}

bool is_set(const char* name) { return std::getenv(name) != nullptr; }

// Instructions of each class, as TERNGRAD_PTX_COUNTS asks.
void print_counts() {
  for (const Module* module : modules()) {
    std::vector<std::vector<uint64_t>> counts(module->function_count, std::vector<uint64_t>(kClasses));
    for (u32 i = 0; i < module->basic_count; ++i) {
      for (int k = 0; k < kClasses; ++k) {
        counts[module->basics[i].function][static_cast<size_t>(k)] +=
            module->hits[i] * module->basics[i].instructions[k];
      }
    }
    for (u32 i = 0; i < module->function_count; ++i) {
      const Function& function = module->functions[i];
      const uint64_t threads = function.entry ? kernels()[function.name].threads : 0;
      uint64_t all = 0;
      for (const uint64_t each : counts[i]) all += each;
      if (all == 0) continue;
      std::printf("%s: %llu threads", function.name, static_cast<unsigned long long>(threads));
      const double by = threads > 0 ? static_cast<double>(threads) : 1.0;
      std::printf(", %.1f instructions%s:", static_cast<double>(all) / by, threads > 0 ? " each" : "");
      for (size_t k = 0; k < static_cast<size_t>(kClasses); ++k) {
        if (counts[i][k] > 0) std::printf(" %s %.1f", kClassNames[k], static_cast<double>(counts[i][k]) / by);
      }
      std::printf("\n");
    }
  }
}

// ---- the launch under way

constexpr size_t kWindow = 256 * 1024;  // of a place; a block has at most 227 KB of shared memory

Kernel* kernel;
std::vector<unsigned char> parameter_memory;
unsigned char* windows;  // the places' shared memory

const char* name_of_kernel() { return kernel ? kernel->function->name : "?"; }

}  // namespace

void stop_at(const Site& site, const char* what) {
  std::fprintf(stderr, "PTX: block %u, thread %u of %s: %s, line %u: %s\n  %s\n", block_index.x, thread_index.x,
               name_of_kernel(), kernel ? kernel->module->file : "?", site.line, what, site.text);
  std::abort();
}

const unsigned char* parameters() { return parameter_memory.data(); }

namespace {

const Site& site_of(u32 number) { return kernel->module->sites[number]; }

// Says each pair of instructions once, and ends the program there unless TERNGRAD_PTX_CONTINUE is set.
void report(const Site& site, u64 address, const char* what, const Memory::Access* earlier) {
  static const bool continues = is_set("TERNGRAD_PTX_CONTINUE");
  static std::set<std::pair<const Site*, const Site*>> known;
  const Site* other = earlier ? &site_of(earlier->site) : nullptr;
  if (!known.insert({&site, other}).second) return;
  std::fprintf(stderr, "PTX: block %u, thread %u of %s: %s at %#llx\n  %s, line %u: %s\n", block_index.x,
               thread_index.x, name_of_kernel(), what, static_cast<unsigned long long>(address), kernel->module->file,
               site.line, site.text);
  if (other) {
    std::fprintf(stderr, "  block %u, thread %u, line %u: %s\n", earlier->block, earlier->thread, other->line,
                 other->text);
  }
  if (!continues) std::abort();
}

// Blocks and warps that meet are told to the memory.
class Watch final : public emulation::Watcher {
 public:
  void block_begins() override {
    memset(windows + place * kWindow, 0xA5, kernel->function->shared_bytes);
    memory.block_begins();
  }
  void block_meets() override { memory.block_meets(); }
  void warp_meets() override { memory.warp_meets(); }

  Memory memory{report};
};

Watch& watch() {
  static auto* const one = new Watch;
  return *one;
}

unsigned char* own_window() { return windows + place * kWindow; }

bool is_shared(const unsigned char* at) { return at >= windows && at < windows + kWindow * emulation::kMostPlaces; }
bool is_parameter(const unsigned char* at) {
  return at >= parameter_memory.data() && at < parameter_memory.data() + parameter_memory.size();
}

u32 number_of(const Site& site) { return static_cast<u32>(&site - kernel->module->sites); }

bool is_there(const unsigned char* at, const void* values, const Site& site) {
  return values && memcmp(at, values, site.bytes) == 0;
}

unsigned char* in_shared(const Site& site, u64 offset, const void* values) {
  const Function& function = *kernel->function;
  const Slot* end = function.shared + function.shared_count;
  const Slot* of = std::find_if(function.shared, end, [&](const Slot& slot) {
    return offset >= slot.at && offset + site.bytes <= slot.at + slot.bytes;
  });
  if (of == end) stop_at(site, "outside of shared variables");
  unsigned char* host = own_window() + offset;
  watch().memory.check_shared(site, number_of(site), offset, is_there(host, values, site));
  return host;
}

unsigned char* in_local(const Site& site, unsigned char* address) {
  const emulation::Range own = emulation::stack_of_thread();
  if (address < own.begin || address + site.bytes > own.end) stop_at(site, "not the thread's local memory");
  return address;
}

unsigned char* in_parameters(const Site& site, u64 offset) {
  if (offset + site.bytes > parameter_memory.size()) stop_at(site, "outside of the parameters");
  if (site.kind != Kind::read) stop_at(site, "a write to parameters");
  return parameter_memory.data() + offset;
}

unsigned char* in_global(const Site& site, unsigned char* address, const void* values) {
  if (reinterpret_cast<u64>(address) < 4096) stop_at(site, "a null address");
  if (is_shared(address)) stop_at(site, "shared memory taken for global");
  if (emulation::is_on_a_stack(address)) stop_at(site, "local memory taken for global");
  if (is_parameter(address)) stop_at(site, "parameters taken for global memory");
  watch().memory.check_global(site, number_of(site), address, is_there(address, values, site));
  return address;
}

// `values`: what a write writes.
unsigned char* checked(const Site& site, u64 address, const void* values) {
  if (address % site.bytes != 0) stop_at(site, "a misaligned address");
  auto* host = reinterpret_cast<unsigned char*>(address);
  switch (site.space) {
    case Space::global: return in_global(site, host, values);
    case Space::shared: return in_shared(site, address - kSharedBase, values);
    case Space::local: return in_local(site, host);
    case Space::param: return in_parameters(site, address);
    case Space::generic: break;
  }
  if (is_shared(host)) {
    const u64 offset = static_cast<u64>(host - own_window());
    if (host < own_window() || offset >= kWindow) stop_at(site, "another block's shared memory");
    return in_shared(site, offset, values);
  }
  if (emulation::is_on_a_stack(host)) return in_local(site, host);
  if (is_parameter(host)) return in_parameters(site, static_cast<u64>(host - parameter_memory.data()));
  return in_global(site, host, values);
}

}  // namespace

unsigned char* at(const Site& site, u64 address) { return checked(site, address, nullptr); }

void store(const Site& site, u64 address, const void* values, size_t bytes) {
  memcpy(checked(site, address, values), values, bytes);
}

u64 generic_of_shared(u64 address) { return reinterpret_cast<u64>(own_window()) + (address - kSharedBase); }
u64 shared_of_generic(u64 address) { return address - reinterpret_cast<u64>(own_window()) + kSharedBase; }
u64 generic_of_param(u64 address) { return reinterpret_cast<u64>(parameter_memory.data()) + address; }

// ---- threads that meet

void bar_sync(const Site& site, u32 barrier) {
  if (barrier != 0) stop_at(site, "a barrier other than 0");
  emulation::wait_for_block(&site);
}

void bar_warp_sync(const Site& site, u32 mask) { emulation::exchange(mask, 0, &site); }

void membar() {
  emulation::step();
  watch().memory.fence();
}

void nanosleep() { emulation::wait_for_others(); }

u32 shuffle(const Site& site, Shuffle how, bool* inside, u32 value, u32 b, u32 c, u32 mask) {
  const u64* all = emulation::exchange(mask, value, &site);
  const u32 own = lane();
  const u32 segment = c >> 8 & 31;
  const u32 last = (own & segment) | (c & 31 & ~segment);
  const u32 first = own & segment;
  b &= 31;
  u32 from = own;
  switch (how) {
    case Shuffle::up:
      from = own - b;
      *inside = static_cast<s32>(from) >= static_cast<s32>(last);
      break;
    case Shuffle::down:
      from = own + b;
      *inside = from <= last;
      break;
    case Shuffle::butterfly:
      from = own ^ b;
      *inside = from <= last;
      break;
    case Shuffle::index:
      from = first | (b & ~segment);
      *inside = from <= last;
      break;
  }
  return static_cast<u32>(all[*inside ? from : own]);
}

u32 ballot(const Site& site, bool predicate, u32 mask) {
  const u64* all = emulation::exchange(mask, predicate ? 1 : 0, &site);
  u32 found = 0;
  for (u32 i = 0; i < kLanes; ++i) found |= static_cast<u32>(all[i]) << i;
  return found;
}

// ---- what the host's objects call

Registered::Registered(const Module& module) {
  modules().push_back(&module);
  if (modules().size() == 1 && is_set("TERNGRAD_PTX_COUNTS")) std::atexit(print_counts);
  for (u32 i = 0; i < module.function_count; ++i) {
    if (module.functions[i].entry) kernels()[module.functions[i].name] = Kernel{&module, &module.functions[i], 0};
  }
}

namespace {

void prepare() {
  if (windows) return;
  const size_t bytes = kWindow * emulation::kMostPlaces;
  windows = static_cast<unsigned char*>(std::aligned_alloc(kWindow, bytes));
  if (!windows) std::abort();
}

cudaError_t launch(const void* stub, dim3 grid, dim3 block, void** arguments) {
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> guard(one_at_a_time);
  const auto found = kernels().find(stubs()[stub]);
  if (found == kernels().end()) return cudaErrorInvalidDeviceFunction;
  kernel = &found->second;
  const Function& function = *kernel->function;
  if (grid.x == 0 || block.x == 0 || block.x > function.most_threads || grid.y * grid.z * block.y * block.z != 1) {
    return cudaErrorInvalidConfiguration;
  }
  prepare();
  const u32 count = function.parameter_count;
  parameter_memory.assign(count == 0 ? 0 : function.parameters[count - 1].at + function.parameters[count - 1].bytes, 0);
  for (u32 i = 0; i < count; ++i) {
    memcpy(parameter_memory.data() + function.parameters[i].at, arguments[i], function.parameters[i].bytes);
  }
  kernel->threads += static_cast<uint64_t>(grid.x) * block.x;
  watch().memory.launch_begins(function.shared_bytes, block.x);
  std::fenv_t environment;
  std::fegetenv(&environment);
  std::fesetenv(FE_DFL_ENV);
  emulation::run(
      {grid.x, 1, 1}, {block.x, 1, 1}, [](void* entry) { reinterpret_cast<void (*)()>(entry)(); },
      reinterpret_cast<void*>(function.entry), true, &watch());
  std::fesetenv(&environment);
  return cudaSuccess;
}

}  // namespace
}  // namespace ptx

namespace emulation {
void allocated(const void* at, size_t bytes) { ptx::watch().memory.mark(at, bytes, true); }
void written(const void* at, size_t bytes) { ptx::watch().memory.mark(at, bytes, false); }
}  // namespace emulation

// For tests: memory of theirs that nobody has written, or that is given back.
namespace terngrad {
namespace cuda {
__attribute__((visibility("default"))) void set_emulated_memory(const void* at, int64_t bytes, bool written) {
  (written ? emulation::written : emulation::allocated)(at, static_cast<size_t>(bytes));
}
}  // namespace cuda
}  // namespace terngrad

extern "C" {

void** __cudaRegisterFatBinary(void* binary) { return static_cast<void**>(binary); }
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void**, const char* stub, char*, const char* name, int, uint3*, uint3*, dim3*, dim3*,
                            int*) {
  ptx::stubs()[stub] = name;
}
// Kernels are launched by cudaLaunchKernelEx alone, but their stubs also name the other way.
cudaError_t __cudaPopCallConfiguration(dim3*, dim3*, size_t*, void*) { return cudaErrorInvalidConfiguration; }
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* stub) {
  *kernel = static_cast<cudaKernel_t>(const_cast<void*>(stub));
  return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments, size_t, cudaStream_t) {
  return ptx::launch(kernel, grid, block, arguments);
}
cudaError_t cudaLaunchKernel(const void* stub, dim3 grid, dim3 block, void** arguments, size_t, cudaStream_t) {
  return ptx::launch(stub, grid, block, arguments);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* stub, void** arguments) {
  return ptx::launch(stub, config->gridDim, config->blockDim, arguments);
}
}
