// Python arrays as the runtime's: NumPy directly, others through the DLPack C exchange API or a DLPack capsule.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <memory>
#include <vector>

#include "../runtime/arrays.h"

namespace terngrad {

namespace py = pybind11;

class TakenTensor;

// The packing of that code. Throws ValueError if there is none.
Packing packing_of(int64_t code);

// A dense array and what keeps its memory alive for the length of a call.
class HeldArray {
 public:
  // Throws TypeError for what is no array, or of a type or on a device that this build does not take, and ValueError
  // for one that is not dense and row-major. `argument` must outlive this.
  HeldArray(py::handle object, const char* argument, int64_t place = -1);
  HeldArray(HeldArray&& other) noexcept;
  HeldArray(const HeldArray&) = delete;
  HeldArray& operator=(const HeldArray&) = delete;
  ~HeldArray();

  Array array;

 private:
  void take_numpy(const py::array& object);
  bool take_exchanged(py::handle object);

  py::object owner_;
  std::unique_ptr<TakenTensor> taken_;
};

// One array, or a tuple of them.
class HeldArrays {
 public:
  HeldArrays(py::handle object, const char* argument);
  const Arrays& arrays() const { return arrays_; }

 private:
  std::vector<HeldArray> held_;
  Arrays arrays_;
};

// Memory of our own that speaks DLPack, and NumPy arrays from DLPack and back: for frameworks whose arrays cannot be
// written, and for those that are known by DLPack alone.
void define_arrays(py::module_& module);

}  // namespace terngrad
