// In place of cuda.cpp in a build without kernels for CUDA devices.
#include "cuda.h"
#include "errors.h"

namespace terngrad {

namespace {

[[noreturn]] void refuse(int32_t device) {
  throw ValueError("CUDA device " + std::to_string(device) + ": this build of terngrad_kernels runs on the CPU only");
}

}  // namespace

class OnDevices {};

int64_t scratch_bytes(const Layout&, bool, int64_t) { return 0; }

namespace cuda {

void scales(const Layout&, const Arrays&, DType, Measure, const Array&, const Array&, int32_t device, const Queue&) {
  refuse(device);
}
void clip(const Layout&, const Arrays&, DType, Measure, const PassedScales*, const Arrays&, int32_t device,
          const Queue&) {
  refuse(device);
}
void ternarize(const Layout&, const Arrays&, DType, Measure, const PassedScales*, DrawBase, const Arrays&, const Array&,
               int32_t device, const Queue&) {
  refuse(device);
}
void encode(const Layout&, const Arrays&, DType, Measure, const PassedScales*, DrawBase, const Array&, int32_t device,
            const Queue&) {
  refuse(device);
}
void decode(const Layout&, const std::vector<const uint8_t*>&, const std::vector<float>&, bool, bool, DType,
            const Arrays&, int32_t device, const Queue&) {
  refuse(device);
}
void repack(const Layout&, const std::vector<const uint8_t*>&, const std::vector<float>&, Measure, const PassedScales*,
            DrawBase, const Layout&, const Array&, int32_t device, const Queue&) {
  refuse(device);
}
void sum_trits(const std::vector<const uint8_t*>&, const std::vector<const Layout*>&, const Layout&, const Array&,
               int32_t device, const Queue&) {
  refuse(device);
}
void pack(const Array&, Packing, const Array&, int32_t device, const Queue&) { refuse(device); }
void unpack(const Array&, Packing, const Array&, int32_t device, const Queue&) { refuse(device); }
void validate(const Layout&, const Array&, int64_t, int32_t device, const Queue&) { refuse(device); }

Devices devices() { return Devices{0, {}, "this build runs on the CPU only"}; }
void set_at_once(bool) {}

bool is_built() { return false; }
bool is_emulated() { return false; }

}  // namespace cuda
}  // namespace terngrad
