// The errors that callers see, by the name that Python gives them.
#pragma once

#include <stdexcept>
#include <string>

#include "export.h"

namespace terngrad {

struct TERNGRAD_API TypeError : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct TERNGRAD_API ValueError : std::runtime_error {
  using std::runtime_error::runtime_error;
};
// CUDA's own.
struct TERNGRAD_API DeviceError : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct TERNGRAD_API BufferError : std::runtime_error {
  using std::runtime_error::runtime_error;
};
// Damaged bytes: a CorruptMessage.
struct TERNGRAD_API CorruptError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace terngrad
