// The golden vectors through the library's own operations, with every instruction set that runs here, in a sound and in
// a hostile floating-point environment: test_golden FILE, which golden.py writes.
#include <fstream>
#include <iostream>
#include <string>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "../../csrc/runtime/dispatch.h"
#include "../../csrc/runtime/operations.h"
#include "../../csrc/runtime/threads.h"
#include "support.h"

namespace terngrad {
namespace tests {
namespace {

// The state of this thread's floating-point unit, without what has happened. Hostile: rounds upwards and flushes
// subnormals; on AArch64 it also makes every NaN the default one and reads float16 in Arm's own way.
#if defined(__x86_64__)
constexpr uint64_t kSound = 0x1f80;
constexpr uint64_t kHostile = 0x1f80 | 0x4000 | 0x8040;
uint64_t state() { return _mm_getcsr() & ~0x3fu; }
void set_state(uint64_t state) { _mm_setcsr(static_cast<unsigned>(state)); }
#elif defined(__aarch64__)
constexpr uint64_t kSound = 0;
constexpr uint64_t kHostile = 1u << 22 | 1u << 24 | 1u << 25 | 1u << 26;
uint64_t state() {
  uint64_t state;
  asm volatile("mrs %0, fpcr" : "=r"(state));
  return state;
}
void set_state(uint64_t state) { asm volatile("msr fpcr, %0" ::"r"(state)); }
#else
constexpr uint64_t kSound = 0;
constexpr uint64_t kHostile = 0;
uint64_t state() { return 0; }
void set_state(uint64_t) {}
#endif

Array array_of(const char* argument, Bytes& bytes, Element element, bool writable) {
  return Array{argument, -1, bytes.data(), static_cast<int64_t>(bytes.size()) / bytes_of(element), element, writable};
}

void compare(const std::string& what, const Bytes& want, const Bytes& got) {
  ++checks;
  if (want != got) fail("%s differs", what.c_str());
}

Bytes read_bytes(std::istream& file, size_t count) {
  Bytes bytes(count);
  file.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(count));
  return bytes;
}

// Returns false at the end of the file.
bool check_case(std::istream& file) {
  std::string id;
  std::string clip;
  int dtype;
  Measure measure{};
  int64_t block;
  int64_t shards;
  int64_t index;
  DrawBase draw{};
  size_t layers;
  size_t nbytes[4];  // of the elements, of passed scales and limits, of the message, of what it decodes to
  if (!(file >> id >> dtype >> clip >> measure.center >> block >> shards >> index >> draw.seed >> draw.offset >>
        draw.layer >> nbytes[0] >> nbytes[1] >> nbytes[2] >> nbytes[3] >> layers)) {
    return false;
  }
  measure.clip = std::strtod(clip.c_str(), nullptr);
  std::vector<int64_t> sizes(layers);
  std::vector<Packing> packings(layers);
  for (size_t i = 0; i < layers; ++i) {
    int packing;
    file >> sizes[i] >> packing;
    packings[i] = static_cast<Packing>(packing);
  }
  if (layers == 0) packings = {Packing::two_bit};
  file.get();  // the end of the line
  Bytes x = read_bytes(file, nbytes[0]);
  Bytes scale = read_bytes(file, nbytes[1] / 2);
  Bytes limit = read_bytes(file, nbytes[1] / 2);
  const Bytes message = read_bytes(file, nbytes[2]);
  const Bytes values = read_bytes(file, nbytes[3]);
  const Layout layout(sizes, packings, block, shards, index);
  const auto element = static_cast<Element>(dtype);  // DType's order
  const PassedScales passed{array_of("scale", scale, Element::float32, false),
                            array_of("limit", limit, Element::float32, false)};
  for (const std::string& isa : runnable_isas()) {
    select_isa(isa);
    for (const uint64_t wanted : {kSound, kHostile}) {
      Bytes got(message.size(), kCanary);
      Bytes decoded(values.size(), kCanary);
      const Array data = array_of("data", got, Element::uint8, true);
      set_state(wanted);
      encode(layout, {array_of("x", x, element, false)}, measure, nbytes[1] ? &passed : nullptr, draw, data);
      decode(layout, data, 1.0, false, {array_of("out", decoded, element, true)});
      validate(layout, data);
      const bool kept = state() == wanted;
      set_state(kSound);
      if (!kept) fail("%s: the floating-point environment was not restored", id.c_str());
      compare(isa + ", " + id, message, got);
      compare(isa + ", what " + id + " decodes to", values, decoded);
    }
  }
  return true;
}

}  // namespace
}  // namespace tests
}  // namespace terngrad

int main(int count, char** arguments) {
  std::ifstream file(count > 1 ? arguments[1] : "", std::ios::binary);
  if (!file) {
    std::fprintf(stderr, "usage: test_golden FILE (which tests/cpp/golden.py writes)\n");
    return 2;
  }
  terngrad::set_num_threads(3);
  while (terngrad::tests::check_case(file)) {
  }
  return terngrad::tests::report("golden");
}
