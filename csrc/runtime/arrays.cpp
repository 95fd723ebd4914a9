#include "arrays.h"

#include <algorithm>

#include "errors.h"

namespace terngrad {

namespace {

struct ElementInfo {
  const char* name;
  int64_t bytes;
};

constexpr ElementInfo kElements[] = {{"float32", 4}, {"float16", 2}, {"bfloat16", 2}, {"float64", 8},
                                     {"int8", 1},    {"uint8", 1},   {"int64", 8},    {"uint32", 4}};

bool overlap(const Array& a, const Array& b) {
  return a.nbytes() > 0 && b.nbytes() > 0 && a.data < b.data + b.nbytes() && b.data < a.data + a.nbytes();
}

}  // namespace

const char* name_of(Element element) { return kElements[static_cast<size_t>(element)].name; }

int64_t bytes_of(Element element) { return kElements[static_cast<size_t>(element)].bytes; }

Element element_of(DType dtype) { return static_cast<Element>(dtype); }
static_assert(static_cast<int>(Element::float32) == static_cast<int>(DType::float32) &&
                  static_cast<int>(Element::float16) == static_cast<int>(DType::float16) &&
                  static_cast<int>(Element::bfloat16) == static_cast<int>(DType::bfloat16) &&
                  static_cast<int>(Element::float64) == static_cast<int>(DType::float64),
              "the floating-point elements are the dtypes");

DType dtype_of(Element element, const std::string& argument) {
  if (element > Element::float64) {
    throw TypeError(argument + ": expected float32, float16, bfloat16 or float64, got " + name_of(element));
  }
  return static_cast<DType>(element);
}

std::string Array::name() const {
  return place < 0 ? argument : std::string(argument) + "[" + std::to_string(place) + "]";
}

void check_element(const Array& array, Element expected) {
  if (array.element != expected) {
    throw TypeError(array.name() + ": expected " + name_of(expected) + ", got " + name_of(array.element));
  }
}

void check_size(const Array& array, int64_t expected) {
  if (array.size != expected) {
    throw ValueError(array.name() + ": expected " + std::to_string(expected) + " elements, got " +
                     std::to_string(array.size));
  }
}

void check_output(const Array& array, Element expected, int64_t size) {
  check_element(array, expected);
  check_size(array, size);
  if (!array.writable) throw BufferError(array.name() + ": expected a writable array, got a read-only one");
}

void check_disjoint(const Arrays& outputs, const Arrays& inputs, bool in_place) {
  const auto check_pair = [&](size_t o, size_t i) {
    if (!overlap(outputs[o], inputs[i])) return;
    const bool same = in_place && o == i && outputs[o].data == inputs[i].data;
    if (!same) throw ValueError(outputs[o].name() + ": overlaps the memory of " + inputs[i].name());
  };
  if (outputs.size() <= 2) {  // nothing to gain by an order, which takes memory
    for (size_t o = 0; o < outputs.size(); ++o) {
      for (size_t i = 0; i < inputs.size(); ++i) check_pair(o, i);
    }
    if (outputs.size() == 2 && overlap(outputs[0], outputs[1])) {
      throw ValueError(outputs[1].name() + ": overlaps the memory of " + outputs[0].name());
    }
    return;
  }
  std::vector<size_t> sorted;
  sorted.reserve(outputs.size());
  for (size_t o = 0; o < outputs.size(); ++o) {
    if (outputs[o].nbytes() > 0) sorted.push_back(o);
  }
  std::stable_sort(sorted.begin(), sorted.end(), [&](size_t a, size_t b) { return outputs[a].data < outputs[b].data; });
  for (size_t k = 1; k < sorted.size(); ++k) {
    const Array& before = outputs[sorted[k - 1]];
    const Array& array = outputs[sorted[k]];
    if (overlap(before, array)) throw ValueError(array.name() + ": overlaps the memory of " + before.name());
  }
  // Disjoint outputs are in the order of their ends too: those that an input may overlap are neighbours.
  for (size_t i = 0; i < inputs.size(); ++i) {
    auto o = std::partition_point(sorted.begin(), sorted.end(),
                                  [&](size_t at) { return outputs[at].data + outputs[at].nbytes() <= inputs[i].data; });
    for (; o != sorted.end() && overlap(outputs[*o], inputs[i]); ++o) check_pair(*o, i);
  }
}

OnePlace& OnePlace::add(const Array& array) {
  const auto name_of_device = [](int32_t device) {
    return device == kHost ? std::string("the CPU") : "CUDA device " + std::to_string(device);
  };
  if (!first_) first_ = &array;
  if (array.device != first_->device) {
    throw ValueError(array.name() + ": expected " + name_of_device(first_->device) + " as " + first_->name() +
                     " is on, got " + name_of_device(array.device));
  }
  // Eight-byte integers are read by halves.
  const auto bytes = static_cast<uintptr_t>(array.element == Element::int64 ? 4 : bytes_of(array.element));
  if (array.device != kHost && reinterpret_cast<uintptr_t>(array.data) % bytes != 0) {
    throw ValueError(array.name() + ": expected an address that is a multiple of " + std::to_string(bytes) +
                     " on a CUDA device");
  }
  return *this;
}

OnePlace& OnePlace::add(const Arrays& arrays) {
  for (const Array& array : arrays) add(array);
  return *this;
}

}  // namespace terngrad
