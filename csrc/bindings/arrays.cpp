#include "arrays.h"

#include <pybind11/stl.h>

#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>
#include <string>

#include TERNGRAD_DLPACK_HEADER

#include "../runtime/cuda.h"
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

constexpr const char* kKnownTypes = "float32, float16, bfloat16, float64, int8, uint8, int64 or uint32";

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
  throw TypeError(array.name() + ": expected " + kKnownTypes + ", got " + text_of(dtype));
}

const DTypeCode* code_of(const DLDataType& dtype) {
  for (const DTypeCode& known : kCodes) {
    if (dtype.lanes == 1 && dtype.code == known.code && dtype.bits == known.bits) return &known;
  }
  return nullptr;
}

TypeError unsupported(const DLDataType& dtype, const Array& array) {
  return TypeError(array.name() + ": expected " + kKnownTypes + ", got DLPack type (code " +
                   std::to_string(dtype.code) + ", " + std::to_string(dtype.bits) + " bits, " +
                   std::to_string(dtype.lanes) + " lanes)");
}

bool is_cuda(int64_t device_type) { return device_type == kDLCUDA || device_type == kDLCUDAManaged; }

// Sets `device`, `size` and `data`, or throws because this build cannot read the memory.
void take_memory(const DLTensor& tensor, Array* array) {
  const bool host = tensor.device.device_type == kDLCPU || tensor.device.device_type == kDLCUDAHost;
  if (is_cuda(tensor.device.device_type) && cuda::is_built()) {
    array->device = tensor.device.device_id;
  } else if (!host) {
    throw ValueError(array->name() + ": expected an array on the CPU" +
                     (cuda::is_built() ? " or a CUDA device" : ", since this build of terngrad_kernels has no CUDA") +
                     ", got one on DLPack device type " + std::to_string(tensor.device.device_type));
  }
  array->size = elements_of(tensor.ndim, tensor.shape);
  if (tensor.data == nullptr && array->size > 0) {
    throw TypeError(array->name() + ": expected an array with memory, got a fake, meta or wrapper tensor");
  }
  array->data = static_cast<unsigned char*>(tensor.data) + tensor.byte_offset;
}

// Fills everything but `writable`.
void take_tensor(const DLTensor& tensor, Array* array) {
  take_memory(tensor, array);
  const DTypeCode* code = code_of(tensor.dtype);
  if (code == nullptr) throw unsupported(tensor.dtype, *array);
  array->element = code->element;
  require_row_major(is_row_major(tensor.ndim, tensor.shape, tensor.strides, 1), *array);
}

}  // namespace

// A tensor taken over from the capsule of `object.__dlpack__()`, legacy or versioned, and given back at the end.
class TakenTensor {
 public:
  TakenTensor(py::handle object, const Array& array) {
    if (!py::hasattr(object, "__dlpack__")) {
      throw TypeError(array.name() + ": expected an array, got " + type_name(object));
    }
    py::object capsule;
    const py::object method = object.attr("__dlpack__");
    py::dict arguments;
    // The kernels run on the stream that the caller says, so nothing has to wait.
    if (cuda::is_built() && is_on_cuda(object)) arguments["stream"] = -1;
    const py::dict before_versions = arguments.attr("copy")();
    arguments["max_version"] = py::make_tuple(DLPACK_MAJOR_VERSION, DLPACK_MINOR_VERSION);
    try {
      capsule = method(**arguments);
    } catch (py::error_already_set& error) {
      if (!error.matches(PyExc_TypeError)) throw;
      capsule = method(**before_versions);
    }
    // Renamed last: until then the capsule frees the tensor, whatever is thrown.
    if (PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned") != 0) {
      auto* managed = static_cast<DLManagedTensorVersioned*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor_versioned"));
      if (managed->version.major != DLPACK_MAJOR_VERSION) {
        throw BufferError(array.name() + ": expected DLPack version " + std::to_string(DLPACK_MAJOR_VERSION) +
                          ", got version " + std::to_string(managed->version.major));
      }
      PyCapsule_SetName(capsule.ptr(), "used_dltensor_versioned");
      versioned_ = managed;
    } else if (PyCapsule_IsValid(capsule.ptr(), "dltensor") != 0) {
      auto* managed = static_cast<DLManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
      PyCapsule_SetName(capsule.ptr(), "used_dltensor");
      legacy_ = managed;
    } else {
      throw BufferError(array.name() + ": expected an unused DLPack capsule from __dlpack__ of " + type_name(object) +
                        ", got none");
    }
  }
  TakenTensor(const TakenTensor&) = delete;
  TakenTensor& operator=(const TakenTensor&) = delete;
  ~TakenTensor() {
    if (legacy_ != nullptr && legacy_->deleter != nullptr) legacy_->deleter(legacy_);
    if (versioned_ != nullptr && versioned_->deleter != nullptr) versioned_->deleter(versioned_);
  }

  const DLTensor& tensor() const { return legacy_ != nullptr ? legacy_->dl_tensor : versioned_->dl_tensor; }
  // An unversioned capsule cannot say, so it is not written.
  bool writable() const { return versioned_ != nullptr && (versioned_->flags & DLPACK_FLAG_BITMASK_READ_ONLY) == 0; }

 private:
  static bool is_on_cuda(py::handle object) {
    if (!py::hasattr(object, "__dlpack_device__")) return false;
    return is_cuda(py::cast<py::tuple>(object.attr("__dlpack_device__")())[0].cast<int64_t>());
  }

  DLManagedTensor* legacy_ = nullptr;
  DLManagedTensorVersioned* versioned_ = nullptr;
};

HeldArray::HeldArray(py::handle object, const char* argument, int64_t place)
    : array{argument, place, nullptr, 0, Element::float32, false}, owner_(py::reinterpret_borrow<py::object>(object)) {
  if (py::isinstance<py::array>(object)) {
    take_numpy(py::reinterpret_borrow<py::array>(object));
  } else if (!take_exchanged(object)) {
    taken_ = std::make_unique<TakenTensor>(object, array);
    take_tensor(taken_->tensor(), &array);
    array.writable = taken_->writable();
  }
  if (emulates()) array.device = 0;
}

HeldArray::HeldArray(HeldArray&& other) noexcept = default;

HeldArray::~HeldArray() = default;

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
  static PyObject* const name = PyUnicode_InternFromString("__dlpack_c_exchange_api__");  // looked up in every call
  const py::object capsule = py::getattr(py::type::handle_of(object), name, py::none());
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
    throw TypeError(array.name() + ": expected an array with dense memory of its own, got a " + type_name(object) +
                    " without");
  }
  take_tensor(tensor, &array);
  array.writable = true;
  return true;
}

bool emulates() {
  static const bool wanted = [] {
    const char* value = std::getenv("TERNGRAD_KERNELS_EMULATE");
    return cuda::is_emulated() && value != nullptr && std::string(value) == "1";
  }();
  return wanted;
}

HeldQueue::HeldQueue(py::handle object, const Layout* layout, bool measured, size_t arrays) {
  if (!object.is_none()) {
    const auto pair = py::cast<py::tuple>(object);
    queue_ = Queue{reinterpret_cast<void*>(pair[0].cast<uintptr_t>()), Array{}};
    if (!pair[1].is_none()) {
      held_ = std::make_unique<HeldArray>(pair[1], "scratch");
      queue_->scratch = held_->array;
    }
  } else if (emulates()) {
    const int64_t bytes = layout != nullptr ? scratch_bytes(*layout, measured, static_cast<int64_t>(arrays)) : 0;
    own_ = std::make_unique<unsigned char[]>(static_cast<size_t>(bytes));
    queue_ = Queue{nullptr, Array{"scratch", -1, own_.get(), bytes, Element::uint8, true, 0}};
  }
}

HeldQueue::~HeldQueue() = default;

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

// ---- exports

namespace {

// What a consumer is shown, and what keeps the memory.
struct View {
  void* data = nullptr;
  std::vector<int64_t> shape;
  std::vector<int64_t> strides;
  DLDataType dtype{};
  bool writable = true;
  std::shared_ptr<void> owner;
};

// What a consumer holds: its own share of the memory, so that it may outlive the object it came from.
template <class Managed>
struct Export {
  Managed managed;
  View view;
};

template <class Managed>
py::capsule exported(View view, const char* name) {
  auto holder = std::make_unique<Export<Managed>>();
  holder->view = std::move(view);
  Managed& managed = holder->managed;
  managed = Managed{};
  managed.dl_tensor.data = holder->view.data;
  managed.dl_tensor.device = DLDevice{kDLCPU, 0};
  managed.dl_tensor.ndim = static_cast<int32_t>(holder->view.shape.size());
  managed.dl_tensor.dtype = holder->view.dtype;
  managed.dl_tensor.shape = holder->view.shape.data();
  managed.dl_tensor.strides = holder->view.strides.data();
  managed.manager_ctx = holder.get();
  managed.deleter = [](Managed* self) { delete static_cast<Export<Managed>*>(self->manager_ctx); };
  if constexpr (std::is_same_v<Managed, DLManagedTensorVersioned>) {
    managed.version = DLPackVersion{DLPACK_MAJOR_VERSION, DLPACK_MINOR_VERSION};
    managed.flags = holder->view.writable ? 0 : DLPACK_FLAG_BITMASK_READ_ONLY;
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

py::capsule exported(View view, const py::object& max_version) {
  const bool versioned =
      !max_version.is_none() && max_version.cast<std::pair<int, int>>().first >= DLPACK_MAJOR_VERSION;
  if (versioned) return exported<DLManagedTensorVersioned>(std::move(view), "dltensor_versioned");
  if (!view.writable) throw BufferError("a read-only array can be exported by DLPack 1.0 and later alone");
  return exported<DLManagedTensor>(std::move(view), "dltensor");
}

constexpr std::align_val_t kBufferAlignment{64};  // what JAX asks for to take memory without a copy

class Buffer {
 public:
  Buffer(std::vector<int64_t> shape, const std::string& dtype) {
    view_.shape = std::move(shape);
    bool known = false;
    for (const DTypeCode& code : kCodes) {
      if (dtype == name_of(code.element)) {
        view_.dtype = DLDataType{code.code, code.bits, 1};
        known = true;
      }
    }
    if (!known) throw ValueError(std::string("dtype: expected ") + kKnownTypes + ", got '" + dtype + "'");
    view_.strides.resize(view_.shape.size());
    int64_t stride = 1;
    for (size_t i = view_.shape.size(); i-- > 0;) {
      const int64_t length = view_.shape[i];
      if (length < 0) throw ValueError("shape: expected sizes >= 0, got " + std::to_string(length));
      view_.strides[i] = stride;
      if (__builtin_mul_overflow(stride, std::max<int64_t>(length, 1), &stride) || stride > kLargestLayer) {
        throw ValueError("shape: more than 2**36 elements");
      }
    }
    const int64_t elements = elements_of(static_cast<int64_t>(view_.shape.size()), view_.shape.data());
    const int64_t bytes = std::max<int64_t>(elements * (view_.dtype.bits / 8), 1);
    view_.data = ::operator new(static_cast<size_t>(bytes), kBufferAlignment);
    view_.owner.reset(view_.data, [](void* data) { ::operator delete(data, kBufferAlignment); });
  }

  const View& view() const { return view_; }

 private:
  View view_;
};

// ---- NumPy arrays from DLPack and back, ml_dtypes' bfloat16 included, which NumPy's own do not have

py::dtype numpy_dtype(const DLDataType& dtype, const Array& array) {
  if (dtype.code == kDLBfloat && dtype.bits == 16 && dtype.lanes == 1) {
    return py::dtype::from_args(py::module_::import("ml_dtypes").attr("bfloat16"));
  }
  const char kind = dtype.code == kDLFloat     ? 'f'
                    : dtype.code == kDLInt     ? 'i'
                    : dtype.code == kDLUInt    ? 'u'
                    : dtype.code == kDLComplex ? 'c'
                    : dtype.code == kDLBool    ? 'b'
                                               : '\0';
  const int bytes = dtype.bits / 8;
  const bool whole = dtype.lanes == 1 && dtype.bits == 8 * bytes && (bytes & (bytes - 1)) == 0;
  const int least = kind == 'f' ? 2 : kind == 'c' ? 8 : 1;
  const int most = kind == 'c' ? 16 : kind == 'b' ? 1 : 8;
  if (kind == '\0' || !whole || bytes < least || bytes > most) throw unsupported(dtype, array);
  return py::dtype(kind + std::to_string(bytes));
}

// A view of what `object.__dlpack__()` gives, read-only unless the capsule says that it may be written.
py::array from_dlpack(py::handle object, const std::string& argument) {
  Array array{argument.c_str(), -1, nullptr, 0, Element::float32, false};
  auto taken = std::make_unique<TakenTensor>(object, array);
  const DLTensor& tensor = taken->tensor();
  take_memory(tensor, &array);
  if (array.device != kHost) throw ValueError(array.name() + ": expected an array in host memory");
  const py::dtype dtype = numpy_dtype(tensor.dtype, array);
  const std::vector<py::ssize_t> shape(tensor.shape, tensor.shape + tensor.ndim);
  std::vector<py::ssize_t> strides(shape.size());
  py::ssize_t dense = dtype.itemsize();
  for (size_t i = shape.size(); i-- > 0;) {
    strides[i] = tensor.strides == nullptr ? dense : tensor.strides[i] * dtype.itemsize();
    dense *= shape[i];
  }
  const bool writable = taken->writable();
  const py::capsule owner(taken.get(), [](void* held) { delete static_cast<TakenTensor*>(held); });
  static_cast<void>(taken.release());
  py::array view(dtype, shape, strides, array.data, owner);
  if (!writable) view.attr("setflags")(py::arg("write") = false);
  return view;
}

py::capsule to_dlpack(const py::array& object, const py::object& max_version) {
  const Array array{"array", -1, nullptr, 0, Element::float32, false};
  const Element element = numpy_element(object.dtype(), array);
  View view;
  view.data = const_cast<void*>(object.data());
  for (const DTypeCode& code : kCodes) {
    if (code.element == element) view.dtype = DLDataType{code.code, code.bits, 1};
  }
  for (py::ssize_t i = 0; i < object.ndim(); ++i) {
    if (object.strides(i) % object.itemsize() != 0) throw BufferError("strides that are no multiple of the itemsize");
    view.shape.push_back(object.shape(i));
    view.strides.push_back(object.strides(i) / object.itemsize());
  }
  view.writable = object.writeable();
  Py_INCREF(object.ptr());
  view.owner = std::shared_ptr<void>(object.ptr(), [](void* owner) {
    if (Py_IsInitialized() == 0) return;  // a consumer's thread that outlives Python
    const py::gil_scoped_acquire gil;
    Py_DECREF(static_cast<PyObject*>(owner));
  });
  return exported(std::move(view), max_version);
}

}  // namespace

void define_arrays(py::module_& module) {
  py::class_<Buffer>(module, "Buffer", "Uninitialised dense memory, 64-byte aligned, that speaks DLPack.")
      .def(py::init<std::vector<int64_t>, const std::string&>(), py::arg("shape"), py::arg("dtype"))
      .def(
          "__dlpack__",
          [](const Buffer& self, const py::object&, const py::object& max_version, const py::object&,
             const py::object&) { return exported(self.view(), max_version); },
          py::kw_only(), py::arg("stream") = py::none(), py::arg("max_version") = py::none(),
          py::arg("dl_device") = py::none(), py::arg("copy") = py::none())
      .def("__dlpack_device__", [](const Buffer&) { return py::make_tuple(static_cast<int>(kDLCPU), 0); });
  module.def("from_dlpack", &from_dlpack);
  module.def("to_dlpack", &to_dlpack);
}

}  // namespace terngrad
