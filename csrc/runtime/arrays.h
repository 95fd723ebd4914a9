// Dense arrays as the bindings hand them over, and the checks that every operation makes before it touches one.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../contract/message.h"
#include "export.h"

namespace terngrad {

enum class Element : uint8_t { float32, float16, bfloat16, float64, int8, uint8, int64, uint32 };

TERNGRAD_API const char* name_of(Element element);
TERNGRAD_API int64_t bytes_of(Element element);
Element element_of(DType dtype);
// Throws TypeError unless it is a floating-point type; `argument` names the array.
TERNGRAD_API DType dtype_of(Element element, const std::string& argument);

constexpr int32_t kHost = -1;

// A dense row-major array, in host memory or on a CUDA device.
struct Array {
  const char* argument;  // the caller's name for it, and its place if it is one of a list
  int64_t place;
  unsigned char* data;
  int64_t size;
  Element element;
  bool writable;
  int32_t device = kHost;  // or the number of a CUDA device

  int64_t nbytes() const { return size * bytes_of(element); }
  TERNGRAD_API std::string name() const;
};

using Arrays = std::vector<Array>;

// Each throws an error that names the argument, what it is and what was expected.
void check_element(const Array& array, Element expected);
void check_size(const Array& array, int64_t expected);
void check_output(const Array& array, Element expected, int64_t size);
// ValueError if an output shares memory with an input or with another output. `in_place`: output i may be input i.
void check_disjoint(const Arrays& outputs, const Arrays& inputs, bool in_place = false);

// Where all of them are. ValueError if they are not in one place or, on a device, not aligned to their elements.
class OnePlace {
 public:
  OnePlace& add(const Array& array);
  OnePlace& add(const Arrays& arrays);
  int32_t device() const { return first_ ? first_->device : kHost; }

 private:
  const Array* first_ = nullptr;
};

}  // namespace terngrad
