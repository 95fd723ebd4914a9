// The operations on the arrays of a CUDA device, whose arguments operations.cpp has checked: cuda.cpp, or no_cuda.cpp
// in a build without.
#pragma once

#include <string>
#include <vector>

#include "operations.h"

namespace terngrad {
namespace cuda {

void scales(const Layout& layout, const Arrays& x, DType dtype, Measure measure, const Array& scale, const Array& limit,
            int32_t device, const Queue& queue);
void clip(const Layout& layout, const Arrays& x, DType dtype, Measure measure, const PassedScales* passed,
          const Arrays& out, int32_t device, const Queue& queue);
void ternarize(const Layout& layout, const Arrays& x, DType dtype, Measure measure, const PassedScales* passed,
               DrawBase draw, const Arrays& trits, const Array& scale, int32_t device, const Queue& queue);
void encode(const Layout& layout, const Arrays& x, DType dtype, Measure measure, const PassedScales* passed,
            DrawBase draw, const Array& data, int32_t device, const Queue& queue);
// `summed`: several messages or one are added to +0 (`fresh`) or to `out`; else the one is written.
void decode(const Layout& layout, const std::vector<const uint8_t*>& messages, const std::vector<float>& weights,
            bool summed, bool fresh, DType dtype, const Arrays& out, int32_t device, const Queue& queue);
void repack(const Layout& layout, const std::vector<const uint8_t*>& messages, const std::vector<float>& weights,
            Measure measure, const PassedScales* passed, DrawBase draw, const Layout& result, const Array& data,
            int32_t device, const Queue& queue);
void sum_trits(const std::vector<const uint8_t*>& messages, const std::vector<const Layout*>& layouts,
               const Layout& result, const Array& data, int32_t device, const Queue& queue);
void pack(const Array& trits, Packing packing, const Array& out, int32_t device, const Queue& queue);
void unpack(const Array& payload, Packing packing, const Array& out, int32_t device, const Queue& queue);
void validate(const Layout& layout, const Array& data, int64_t workers, int32_t device, const Queue& queue);

// Whether encode measures and encodes in one launch, and not in two. For tests and measurements: which is faster where
// has not been measured.
TERNGRAD_API void set_at_once(bool on);

struct Device {
  std::string name;
  int major;
  int minor;
  int64_t memory;  // bytes
};

// Asks the driver when it is called. `error`: why there are no devices, if there are none.
struct Devices {
  int driver;  // 13000 for 13.0; 0: none
  std::vector<Device> all;
  std::string error;
};
TERNGRAD_API Devices devices();

// Whether this build has kernels for CUDA devices; and whether they run on the host, for tests.
TERNGRAD_API bool is_built();
TERNGRAD_API bool is_emulated();

}  // namespace cuda
}  // namespace terngrad
