// Python arrays as the runtime's: NumPy directly, others through the DLPack C exchange API or a DLPack capsule.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <memory>
#include <optional>
#include <vector>

#include "../runtime/operations.h"

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

// (stream, scratch) or None, and what keeps the scratch alive for the length of a call.
class HeldQueue {
 public:
  // The others say what the call needs, for where the tests have no queue to pass. `layout` null: it needs nothing.
  HeldQueue(py::handle object, const Layout* layout, bool measured, size_t arrays);
  HeldQueue(const HeldQueue&) = delete;
  HeldQueue& operator=(const HeldQueue&) = delete;
  ~HeldQueue();
  const Queue* get() const { return queue_ ? &*queue_ : nullptr; }

 private:
  std::optional<Queue> queue_;
  std::unique_ptr<HeldArray> held_;
  std::unique_ptr<unsigned char[]> own_;
};

// Whether all host arrays are taken as those of CUDA device 0: in the build that runs its kernels on the host, where
// TERNGRAD_KERNELS_EMULATE is 1.
bool emulates();

// Memory of our own that speaks DLPack, and NumPy arrays from DLPack and back: for frameworks whose arrays cannot be
// written, and for those that are known by DLPack alone.
void define_arrays(py::module_& module);

}  // namespace terngrad
