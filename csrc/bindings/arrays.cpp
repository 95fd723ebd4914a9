#include "arrays.h"

#include <pybind11/stl.h>

#include <atomic>
#include <memory>
#include <new>
#include <string>

#include TERNGRAD_DLPACK_HEADER

#include "../runtime/errors.h"

namespace terngrad {

namespace {

constexpr int kNumpyInt8 = 1;
constexpr int kNumpyUInt8 = 2;
constexpr int kNumpyFloat = 11;
constexpr int kNumpyDouble = 12;
constexpr int kNumpyHalf = 23;
constexpr int kNumpyFirstUserType = 256;

struct DTypeCode {
  uint8_t code;
  uint8_t bits;
  Element element;
};

constexpr DTypeCode kCodes[] = {
    {kDLFloat, 32, Element::float32}, {kDLFloat, 16, Element::float16}, {kDLBfloat, 16, Element::bfloat16},
    {kDLFloat, 64, Element::float64}, {kDLInt, 8, Element::int8},       {kDLUInt, 8, Element::uint8},
    {kDLInt, 64, Element::int64},     {kDLUInt, 32, Element::uint32},
};

bool is_row_major(int64_t dimensions, const int64_t* shape, const int64_t* strides, int64_t unit) {
  if (strides == nullptr) return true;
  int64_t expected = unit;
  for (int64_t i = dimensions - 1; i >= 0; --i) {
    if (shape[i] == 0) return true;
  }
  for (int64_t i = dimensions - 1; i >= 0; --i) {
    if (shape[i] != 1 && strides[i] != expected) return false;
    expected *= shape[i];
  }
  return true;
}

int64_t elements_of(int64_t dimensions, const int64_t* shape) {
  int64_t elements = 1;
  for (int64_t i = 0; i < dimensions; ++i) elements *= shape[i];
  return elements;
}

void require_row_major(bool row_major, const Array& array) {
  if (!row_major) throw ValueError(array.name() + ": expected a dense row-major array, got one with other strides");
}

std::string text_of(py::handle object) { return py::str(object).cast<std::string>(); }

std::string type_name(py::handle object) { return py::type::handle_of(object).attr("__name__").cast<std::string>(); }

// ml_dtypes registers its types at run time, so bfloat16's number is only known by its name.
bool is_numpy_bfloat16(const py::dtype& dtype) {
  static std::atomic<int> known{-1};
  const int number = dtype.num();
  if (number < kNumpyFirstUserType) return false;
  if (number == known.load(std::memory_order_relaxed)) return true;
  if (text_of(dtype.attr("name")) != "bfloat16") return false;
  known.store(number, std::memory_order_relaxed);
  return true;
}

Element numpy_element(const py::dtype& dtype, const Array& array) {
  const char order = dtype.byteorder();
  if (order == '=' || order == '|') {
    switch (dtype.num()) {
      case kNumpyFloat: return Element::float32;
      case kNumpyHalf: return Element::float16;
      case kNumpyDouble: return Element::float64;
      case kNumpyInt8: return Element::int8;
      case kNumpyUInt8: return Element::uint8;
      default: break;
    }
    if (is_numpy_bfloat16(dtype)) return Element::bfloat16;
    // int64 and uint32 have several numbers, by platform.
    if (dtype.kind() == 'i' && dtype.itemsize() == 8) return Element::int64;
    if (dtype.kind() == 'u' && dtype.itemsize() == 4) return Element::uint32;
  }
  throw TypeError(array.name() + ": an array of dtype " + text_of(dtype) + " is not supported");
}

// Fills everything but `writable`.
void take_tensor(const DLTensor& tensor, Array* array) {
  const bool host = tensor.device.device_type == kDLCPU || tensor.device.device_type == kDLCUDAHost;
  if (!host) {
    throw ValueError(array->name() + ": on DLPack device type " + std::to_string(tensor.device.device_type) +
                     ", but this build of terngrad_kernels runs on the CPU only");
  }
  bool known = false;
  for (const DTypeCode& code : kCodes) {
    if (tensor.dtype.lanes == 1 && tensor.dtype.code == code.code && tensor.dtype.bits == code.bits) {
      array->element = code.element;
      known = true;
    }
  }
  if (!known) {
    throw TypeError(array->name() + ": DLPack type (code " + std::to_string(tensor.dtype.code) + ", " +
                    std::to_string(tensor.dtype.bits) + " bits, " + std::to_string(tensor.dtype.lanes) +
                    " lanes) is not supported");
  }
  require_row_major(is_row_major(tensor.ndim, tensor.shape, tensor.strides, 1), *array);
  array->size = elements_of(tensor.ndim, tensor.shape);
  array->data = static_cast<unsigned char*>(tensor.data) + tensor.byte_offset;
  if (tensor.data == nullptr && array->size > 0) {
    throw TypeError(array->name() + ": has no memory behind it (a fake, meta or wrapper tensor)");
  }
}

}  // namespace

HeldArray::HeldArray(py::handle object, const char* argument, int64_t place)
    : array{argument, place, nullptr, 0, Element::float32, false}, owner_(py::reinterpret_borrow<py::object>(object)) {
  if (py::isinstance<py::array>(object)) {
    take_numpy(py::reinterpret_borrow<py::array>(object));
  } else if (!take_exchanged(object)) {
    take_capsule(object);
  }
}

HeldArray::HeldArray(HeldArray&& other) noexcept
    : array(other.array), owner_(std::move(other.owner_)), legacy_(other.legacy_), versioned_(other.versioned_) {
  other.legacy_ = nullptr;
  other.versioned_ = nullptr;
}

HeldArray::~HeldArray() {
  if (legacy_ != nullptr && legacy_->deleter != nullptr) legacy_->deleter(legacy_);
  if (versioned_ != nullptr && versioned_->deleter != nullptr) versioned_->deleter(versioned_);
}

void HeldArray::take_numpy(const py::array& object) {
  array.element = numpy_element(object.dtype(), array);
  const auto* strides = reinterpret_cast<const int64_t*>(object.strides());
  const auto* shape = reinterpret_cast<const int64_t*>(object.shape());
  require_row_major(is_row_major(object.ndim(), shape, strides, bytes_of(array.element)), array);
  array.size = elements_of(object.ndim(), shape);
  array.data = static_cast<unsigned char*>(const_cast<void*>(object.data()));
  array.writable = object.writeable();
}

bool HeldArray::take_exchanged(py::handle object) {
  const auto type = py::type::handle_of(object);
  const py::object capsule = py::getattr(type, "__dlpack_c_exchange_api__", py::none());
  if (capsule.is_none()) return false;
  const auto* header =
      static_cast<const DLPackExchangeAPIHeader*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  if (header == nullptr) throw py::error_already_set();
  if (header->version.major != DLPACK_MAJOR_VERSION) return false;
  const auto* api = reinterpret_cast<const DLPackExchangeAPI*>(header);
  if (api->dltensor_from_py_object_no_sync == nullptr) return false;
  DLTensor tensor{};
  if (api->dltensor_from_py_object_no_sync(object.ptr(), &tensor) != 0) {
    PyErr_Clear();
    throw TypeError(array.name() + ": " + type_name(object) + " has no dense memory of its own");
  }
  take_tensor(tensor, &array);
  array.writable = true;
  return true;
}

void HeldArray::take_capsule(py::handle object) {
  if (!py::hasattr(object, "__dlpack__")) {
    throw TypeError(array.name() + ": expected an array, got " + type_name(object));
  }
  py::object capsule;
  const py::object method = object.attr("__dlpack__");
  try {
    capsule = method(py::arg("max_version") = py::make_tuple(DLPACK_MAJOR_VERSION, DLPACK_MINOR_VERSION));
  } catch (py::error_already_set& error) {
    if (!error.matches(PyExc_TypeError)) throw;
    capsule = method();  // a producer from before versions
  }
  owner_ = capsule;
  // Taken over last: until then the capsule frees the tensor, whatever is thrown. (A constructor that throws runs no
  // destructor.)
  if (PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned") != 0) {
    auto* managed = static_cast<DLManagedTensorVersioned*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor_versioned"));
    if (managed->version.major != DLPACK_MAJOR_VERSION) {
      throw BufferError(array.name() + ": DLPack version " + std::to_string(managed->version.major) +
                        " is not supported");
    }
    take_tensor(managed->dl_tensor, &array);
    PyCapsule_SetName(capsule.ptr(), "used_dltensor_versioned");
    versioned_ = managed;
    array.writable = (managed->flags & DLPACK_FLAG_BITMASK_READ_ONLY) == 0;
  } else if (PyCapsule_IsValid(capsule.ptr(), "dltensor") != 0) {
    auto* managed = static_cast<DLManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
    take_tensor(managed->dl_tensor, &array);
    PyCapsule_SetName(capsule.ptr(), "used_dltensor");
    legacy_ = managed;
    array.writable = false;  // an unversioned capsule cannot say, so it is not written
  } else {
    throw BufferError(array.name() + ": __dlpack__ of " + type_name(object) + " returned no usable capsule");
  }
}

Packing packing_of(int64_t code) {
  if (code < 0 || code > static_cast<int64_t>(Packing::counts16))
    throw ValueError("packing: unknown code " + std::to_string(code));
  return static_cast<Packing>(code);
}

HeldArrays::HeldArrays(py::handle object, const char* argument) {
  if (PyTuple_Check(object.ptr()) == 0) {
    held_.emplace_back(object, argument);
  } else {
    const auto tuple = py::reinterpret_borrow<py::tuple>(object);
    held_.reserve(tuple.size());
    int64_t place = 0;
    for (const py::handle item : tuple) held_.emplace_back(item, argument, place++);
  }
  arrays_.reserve(held_.size());
  for (const HeldArray& held : held_) arrays_.push_back(held.array);
}

// ---- Buffer

namespace {

constexpr std::align_val_t kBufferAlignment{64};  // what JAX asks for to take memory without a copy

struct Memory {
  explicit Memory(int64_t bytes) : data(::operator new(static_cast<size_t>(bytes > 0 ? bytes : 1), kBufferAlignment)) {}
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() { ::operator delete(data, kBufferAlignment); }
  void* data;
};

// What a consumer holds: its own share of the memory, so that it may outlive the Buffer.
template <class Managed>
struct Export {
  Managed managed;
  std::vector<int64_t> shape;
  std::vector<int64_t> strides;
  std::shared_ptr<Memory> memory;
};

class Buffer {
 public:
  Buffer(std::vector<int64_t> shape, const std::string& dtype) : shape_(std::move(shape)) {
    bool known = false;
    for (const DTypeCode& code : kCodes) {
      if (dtype == name_of(code.element)) {
        dtype_ = DLDataType{code.code, code.bits, 1};
        known = true;
      }
    }
    if (!known) throw ValueError("dtype: '" + dtype + "' is not supported");
    strides_.resize(shape_.size());
    int64_t stride = 1;
    for (size_t i = shape_.size(); i-- > 0;) {
      if (shape_[i] < 0) throw ValueError("shape: expected sizes >= 0, got " + std::to_string(shape_[i]));
      strides_[i] = stride;
      if (__builtin_mul_overflow(stride, std::max<int64_t>(shape_[i], 1), &stride) || stride > kLargestLayer) {
        throw ValueError("shape: more than 2**36 elements");
      }
    }
    const int64_t elements = elements_of(static_cast<int64_t>(shape_.size()), shape_.data());
    memory_ = std::make_shared<Memory>(elements * (dtype_.bits / 8));
  }

  template <class Managed>
  py::capsule exported(const char* name) const {
    auto holder = std::make_unique<Export<Managed>>();
    holder->shape = shape_;
    holder->strides = strides_;
    holder->memory = memory_;
    Managed& managed = holder->managed;
    managed = Managed{};
    managed.dl_tensor.data = memory_->data;
    managed.dl_tensor.device = DLDevice{kDLCPU, 0};
    managed.dl_tensor.ndim = static_cast<int32_t>(shape_.size());
    managed.dl_tensor.dtype = dtype_;
    managed.dl_tensor.shape = holder->shape.data();
    managed.dl_tensor.strides = holder->strides.data();
    managed.manager_ctx = holder.get();
    managed.deleter = [](Managed* self) { delete static_cast<Export<Managed>*>(self->manager_ctx); };
    if constexpr (std::is_same_v<Managed, DLManagedTensorVersioned>) {
      managed.version = DLPackVersion{DLPACK_MAJOR_VERSION, DLPACK_MINOR_VERSION};
    }
    PyObject* capsule = PyCapsule_New(&managed, name, [](PyObject* object) {
      // A consumer renames what it took over.
      const char* current = PyCapsule_GetName(object);
      if (current == nullptr || std::string(current).rfind("used_", 0) == 0) return;
      auto* unused = static_cast<Managed*>(PyCapsule_GetPointer(object, current));
      unused->deleter(unused);
    });
    if (capsule == nullptr) throw py::error_already_set();
    static_cast<void>(holder.release());
    return py::reinterpret_steal<py::capsule>(capsule);
  }

  py::capsule dlpack(const py::object& max_version) const {
    const bool versioned =
        !max_version.is_none() && max_version.cast<std::pair<int, int>>().first >= DLPACK_MAJOR_VERSION;
    return versioned ? exported<DLManagedTensorVersioned>("dltensor_versioned") : exported<DLManagedTensor>("dltensor");
  }

 private:
  std::vector<int64_t> shape_;
  std::vector<int64_t> strides_;
  DLDataType dtype_{};
  std::shared_ptr<Memory> memory_;
};

}  // namespace

void define_buffer(py::module_& module) {
  py::class_<Buffer>(module, "Buffer", "Uninitialised dense memory, 64-byte aligned, that speaks DLPack.")
      .def(py::init<std::vector<int64_t>, const std::string&>(), py::arg("shape"), py::arg("dtype"))
      .def(
          "__dlpack__",
          [](const Buffer& self, const py::object&, const py::object& max_version, const py::object&,
             const py::object&) { return self.dlpack(max_version); },
          py::kw_only(), py::arg("stream") = py::none(), py::arg("max_version") = py::none(),
          py::arg("dl_device") = py::none(), py::arg("copy") = py::none())
      .def("__dlpack_device__", [](const Buffer&) { return py::make_tuple(static_cast<int>(kDLCPU), 0); });
}

}  // namespace terngrad
