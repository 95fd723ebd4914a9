// The Python edge: arguments in, errors out, the GIL released around the work. No arithmetic, no checks that the
// runtime makes.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "../runtime/cuda.h"
#include "../runtime/dispatch.h"
#include "../runtime/errors.h"
#include "../runtime/float_environment.h"
#include "../runtime/operations.h"
#include "../runtime/threads.h"
#include "arrays.h"
#include "xla.h"

namespace terngrad {

namespace {

std::string type_name(py::handle object) { return py::type::handle_of(object).attr("__name__").cast<std::string>(); }

// A seed or an offset: the number, or where on which device it lies.
struct Word {
  uint64_t number;
  const unsigned char* at;
  int32_t device;
};

// An int in [-2^63, 2^64), or an array that holds one: int64 of one element, or uint32 (low, high).
Word word_of(py::handle object, const char* argument) {
  const auto known = [](uint64_t number) { return Word{number, nullptr, kHost}; };
  const auto refuse = [&]() -> Word {
    throw TypeError(std::string(argument) + ": expected an int, a 0-d int64 array or a uint32 array (low, high), got " +
                    type_name(object));
  };
  if (PyBool_Check(object.ptr()) != 0) return refuse();
  if (PyLong_Check(object.ptr()) == 0 && py::hasattr(object, "__dlpack__") && py::hasattr(object, "shape")) {
    try {
      const HeldArray held(object, argument);
      const bool whole = held.array.element == Element::int64 && held.array.size == 1;
      const bool halves = held.array.element == Element::uint32 && held.array.size == 2;
      if (!whole && !halves) return refuse();
      if (held.array.device != kHost) return Word{0, held.array.data, held.array.device};
      uint64_t word;
      std::memcpy(&word, held.array.data, sizeof word);
      return known(word);
    } catch (const py::error_already_set& error) {
      if (error.matches(PyExc_TypeError)) return refuse();  // a value of JAX's that is only traced, say
      throw;
    }
  }
  if (PyIndex_Check(object.ptr()) == 0) return refuse();
  const auto number = py::reinterpret_steal<py::object>(PyNumber_Index(object.ptr()));
  if (!number) throw py::error_already_set();
  int overflow = 0;
  const long long value = PyLong_AsLongLongAndOverflow(number.ptr(), &overflow);
  if (overflow == 0) return known(static_cast<uint64_t>(value));
  const unsigned long long large = PyLong_AsUnsignedLongLong(number.ptr());
  if (PyErr_Occurred() != nullptr) {
    PyErr_Clear();
    throw ValueError(std::string(argument) + ": expected an int from -2**63 to 2**64 - 1, got " +
                     py::str(number).cast<std::string>());
  }
  return known(large);
}

bool is_bool(py::handle object) {
  if (PyBool_Check(object.ptr()) != 0) return true;
  const std::string name = Py_TYPE(object.ptr())->tp_name;
  return name == "numpy.bool" || name == "numpy.bool_";  // NumPy 2, NumPy 1
}

// An int; what does not fit becomes the nearest that does.
Py_ssize_t whole_of(py::handle object, const char* argument) {
  if (is_bool(object) || PyIndex_Check(object.ptr()) == 0) {
    throw TypeError(std::string(argument) + ": expected an int, got " + type_name(object));
  }
  return PyNumber_AsSsize_t(object.ptr(), nullptr);
}

double number_of(py::handle object, const char* argument, const char* expected) {
  if (PyFloat_CheckExact(object.ptr()) != 0) return PyFloat_AS_DOUBLE(object.ptr());
  if (is_bool(object) || PyNumber_Check(object.ptr()) == 0 || PyComplex_Check(object.ptr()) != 0) {
    throw TypeError(std::string(argument) + ": expected " + expected + ", got " + type_name(object));
  }
  const double value = PyFloat_AsDouble(object.ptr());
  if (value == -1.0 && PyErr_Occurred() != nullptr) {
    PyErr_Clear();
    throw TypeError(std::string(argument) + ": expected " + expected + ", got " + type_name(object));
  }
  return value;
}

Measure measure_of(py::handle clip, bool center) {
  if (clip.is_none()) return Measure{0.0, center};
  const double value = number_of(clip, "clip", "a number > 0 or None");
  const FloatEnvironment environment;  // a caller that flushes denormals has small numbers compare equal to 0
  if (!(value > 0.0)) {
    throw ValueError("clip: expected a number > 0 or None, got " + py::str(clip).cast<std::string>());
  }
  return Measure{value, center};
}

DrawBase draw_of(py::handle seed, py::handle offset, py::handle layer, int64_t layers) {
  const auto text = [&] { return py::str(layer).cast<std::string>(); };
  const uint32_t first = layer_word(whole_of(layer, "layer"), layers, text);
  const Word key = word_of(seed, "seed");
  const Word step = word_of(offset, "offset");
  return DrawBase{key.number, step.number, first, key.at, step.at, key.device, step.device};
}

std::vector<double> weights_of(const py::tuple& weights) {
  std::vector<double> factors;
  factors.reserve(weights.size());
  for (const py::handle weight : weights) factors.push_back(number_of(weight, "weights", "numbers"));
  return factors;
}

// (scale, limit), or None.
class HeldScales {
 public:
  explicit HeldScales(py::handle object) {
    if (object.is_none()) return;
    const auto pair = py::cast<py::tuple>(object);
    held_.reserve(2);
    held_.emplace_back(pair[0], "scales.scale");
    held_.emplace_back(pair[1], "scales.limit");
    passed_ = PassedScales{held_[0].array, held_[1].array};
  }
  const PassedScales* get() const { return passed_ ? &*passed_ : nullptr; }

 private:
  std::vector<HeldArray> held_;
  std::optional<PassedScales> passed_;
};

py::tuple pieces_of(const Layout& layout) {
  py::tuple pieces(layout.pieces().size());
  size_t i = 0;
  for (const Piece& piece : layout.pieces()) {
    pieces[i++] = py::make_tuple(piece.layer, piece.first, piece.size, static_cast<int>(piece.packing), piece.group,
                                 piece.scale_at, piece.payload_at, payload_bytes(piece.packing, piece.size));
  }
  return pieces;
}

std::vector<Packing> packings_of(const std::vector<int>& codes) {
  std::vector<Packing> packings;
  packings.reserve(codes.size());
  for (const int code : codes) packings.push_back(packing_of(code));
  return packings;
}

void define_layout(py::module_& m) {
  py::class_<Layout>(m, "Layout", "The geometry of a message: see terngrad_kernels.Layout.")
      .def(
          py::init([](std::vector<int64_t> sizes, const std::vector<int>& packings, int64_t block, int64_t shards,
                      int64_t index) { return Layout(std::move(sizes), packings_of(packings), block, shards, index); }),
          py::arg("sizes"), py::arg("packings"), py::arg("block"), py::arg("shards"), py::arg("index"))
      .def_property_readonly("description",
                             [](const Layout& self) {
                               const std::vector<int64_t>& numbers = self.description();
                               return py::array_t<int64_t>(static_cast<py::ssize_t>(numbers.size()), numbers.data());
                             })
      .def_property_readonly("sizes", &Layout::sizes)
      .def_property_readonly("size", &Layout::size)
      .def_property_readonly("nbytes", &Layout::nbytes)
      .def_property_readonly("groups", &Layout::groups)
      .def_property_readonly("pieces", &pieces_of)
      .def("scratch_nbytes", &scratch_bytes, py::arg("measured"), py::arg("arrays"));
}

void define_operations(py::module_& m) {
  // The last argument, which host arrays do without: (stream, scratch).
  const auto queue_argument = py::arg("queue") = py::none();
  m.def(
      "scales",
      [](const Layout& layout, py::handle x, py::handle clip, bool center, py::handle scale, py::handle limit,
         py::handle queue) {
        const HeldArrays inputs(x, "x");
        const HeldArray scale_out(scale, "out.scale");
        const HeldArray limit_out(limit, "out.limit");
        const Measure measure = measure_of(clip, center);
        const HeldQueue work(queue, &layout, true, inputs.arrays().size());
        const py::gil_scoped_release released;
        scales(layout, inputs.arrays(), measure, scale_out.array, limit_out.array, work.get());
      },
      py::arg("layout"), py::arg("x"), py::arg("clip"), py::arg("center"), py::arg("scale"), py::arg("limit"),
      queue_argument);
  m.def(
      "clip",
      [](const Layout& layout, py::handle x, py::handle clip_factor, bool center, py::handle passed, py::handle out,
         py::handle queue) {
        const HeldArrays inputs(x, "x");
        const HeldArrays outputs(out, "out");
        const HeldScales held(passed);
        const Measure measure = measure_of(clip_factor, center);
        const HeldQueue work(queue, &layout, held.get() == nullptr, inputs.arrays().size() + outputs.arrays().size());
        const py::gil_scoped_release released;
        clip(layout, inputs.arrays(), measure, held.get(), outputs.arrays(), work.get());
      },
      py::arg("layout"), py::arg("x"), py::arg("clip"), py::arg("center"), py::arg("scales"), py::arg("out"),
      queue_argument);
  m.def(
      "ternarize",
      [](const Layout& layout, py::handle x, py::handle clip, py::handle passed, py::handle seed, py::handle offset,
         py::handle layer, py::handle trits, py::handle scale, py::handle queue) {
        const HeldArrays inputs(x, "x");
        const HeldArrays outputs(trits, "out");
        const HeldArray scale_out(scale, "out[1]");
        const HeldScales held(passed);
        const Measure measure = measure_of(clip, false);
        const DrawBase draw = draw_of(seed, offset, layer, layout.layers());
        const HeldQueue work(queue, &layout, held.get() == nullptr, inputs.arrays().size() + outputs.arrays().size());
        const py::gil_scoped_release released;
        ternarize(layout, inputs.arrays(), measure, held.get(), draw, outputs.arrays(), scale_out.array, work.get());
      },
      py::arg("layout"), py::arg("x"), py::arg("clip"), py::arg("scales"), py::arg("seed"), py::arg("offset"),
      py::arg("layer"), py::arg("trits"), py::arg("scale"), queue_argument);
  m.def(
      "encode",
      [](const Layout& layout, py::handle x, py::handle clip, py::handle passed, py::handle seed, py::handle offset,
         py::handle layer, py::handle out, py::handle queue) {
        const HeldArrays inputs(x, "x");
        const HeldArray data(out, "out");
        const HeldScales held(passed);
        const Measure measure = measure_of(clip, false);
        const DrawBase draw = draw_of(seed, offset, layer, layout.layers());
        const HeldQueue work(queue, &layout, held.get() == nullptr, inputs.arrays().size());
        const py::gil_scoped_release released;
        encode(layout, inputs.arrays(), measure, held.get(), draw, data.array, work.get());
      },
      py::arg("layout"), py::arg("x"), py::arg("clip"), py::arg("scales"), py::arg("seed"), py::arg("offset"),
      py::arg("layer"), py::arg("out"), queue_argument);
  m.def(
      "decode",
      [](const Layout& layout, py::handle data, py::handle weight, bool accumulate, py::handle out, py::handle queue) {
        const HeldArray message(data, "packed.data");
        const HeldArrays outputs(out, "out");
        const double factor = number_of(weight, "weight", "a number");
        const HeldQueue work(queue, &layout, false, outputs.arrays().size() + 1);
        const py::gil_scoped_release released;
        decode(layout, message.array, factor, accumulate, outputs.arrays(), work.get());
      },
      py::arg("layout"), py::arg("data"), py::arg("weight"), py::arg("accumulate"), py::arg("out"), queue_argument);
  m.def(
      "decode_sum",
      [](const Layout& layout, py::handle messages, const py::tuple& weights, py::handle out, py::handle queue) {
        const HeldArrays inputs(messages, "messages");
        const HeldArrays outputs(out, "out");
        const std::vector<double> factors = weights_of(weights);
        const HeldQueue work(queue, &layout, false, factors.size() + outputs.arrays().size());
        const py::gil_scoped_release released;
        decode_sum(layout, inputs.arrays(), factors, outputs.arrays(), work.get());
      },
      py::arg("layout"), py::arg("messages"), py::arg("weights"), py::arg("out"), queue_argument);
  m.def(
      "sum_trits",
      [](const py::list& messages, const Layout& result, py::handle out, py::handle queue) {
        std::vector<HeldArray> held;
        std::vector<Summand> summands;
        size_t count = 0;
        held.reserve(messages.size());
        for (const py::handle message : messages) {
          const auto parts = py::cast<py::tuple>(message);
          held.emplace_back(parts[1], "messages", static_cast<int64_t>(held.size()));
          summands.push_back(Summand{parts[0].cast<const Layout*>(), held.back().array, parts[2].cast<int64_t>()});
          const int64_t nbytes = std::max<int64_t>(summands.back().layout->nbytes(), 1);
          count += static_cast<size_t>(std::max<int64_t>(held.back().array.size / nbytes, 1));
        }
        const HeldArray data(out, "out");
        const HeldQueue work(queue, &result, false, count);
        const py::gil_scoped_release released;
        sum_trits(summands, result, data.array, work.get());
      },
      py::arg("messages"), py::arg("result"), py::arg("out"), queue_argument);
  m.def(
      "repack",
      [](const Layout& layout, py::handle messages, const py::tuple& weights, py::handle clip, py::handle passed,
         py::handle seed, py::handle offset, py::handle layer, const Layout& result, py::handle out, py::handle queue) {
        const HeldArrays inputs(messages, "messages");
        const std::vector<double> factors = weights_of(weights);
        const HeldArray data(out, "out");
        const HeldScales held(passed);
        const Measure measure = measure_of(clip, false);
        const DrawBase draw = draw_of(seed, offset, layer, layout.layers());
        const HeldQueue work(queue, &layout, held.get() == nullptr, factors.size());
        const py::gil_scoped_release released;
        repack(layout, inputs.arrays(), factors, measure, held.get(), draw, result, data.array, work.get());
      },
      py::arg("layout"), py::arg("messages"), py::arg("weights"), py::arg("clip"), py::arg("scales"), py::arg("seed"),
      py::arg("offset"), py::arg("layer"), py::arg("result"), py::arg("out"), queue_argument);
  m.def(
      "pack",
      [](py::handle trits, int packing, py::handle out, py::handle queue) {
        const HeldArray from(trits, "trits");
        const HeldArray to(out, "out");
        const Packing form = packing_of(packing);
        const HeldQueue work(queue, nullptr, false, 0);
        const py::gil_scoped_release released;
        pack(from.array, form, to.array, work.get());
      },
      py::arg("trits"), py::arg("packing"), py::arg("out"), queue_argument);
  m.def(
      "unpack",
      [](py::handle payload, int packing, py::handle out, py::handle queue) {
        const HeldArray from(payload, "payload");
        const HeldArray to(out, "out");
        const Packing form = packing_of(packing);
        const HeldQueue work(queue, nullptr, false, 0);
        const py::gil_scoped_release released;
        unpack(from.array, form, to.array, work.get());
      },
      py::arg("payload"), py::arg("packing"), py::arg("out"), queue_argument);
  m.def(
      "validate",
      [](const Layout& layout, py::handle data, int64_t workers, py::handle queue) {
        const HeldArray message(data, "packed.data");
        const HeldQueue work(queue, &layout, true, 1);
        const py::gil_scoped_release released;
        validate(layout, message.array, workers, work.get());
      },
      py::arg("layout"), py::arg("data"), py::arg("workers"), queue_argument);
  m.def("payload_bytes", [](int packing, int64_t n) { return payload_bytes(packing_of(packing), n); });
}

// The contract's inner values, so that tests see more than the bytes that come of them.
void define_inner_values(py::module_& m) {
  m.def("philox", [](uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t key0, uint32_t key1) {
    const PhiloxWords words = philox(PhiloxWords{{c0, c1, c2, c3}}, key0, key1);
    return py::make_tuple(words.w[0], words.w[1], words.w[2], words.w[3]);
  });
  m.def("uniforms", [](int64_t n, py::handle seed, py::handle offset, uint32_t layer, int64_t first) {
    const py::object out = py::array_t<uint32_t>(n);
    const HeldArray to(out, "out");
    const DrawBase draw{word_of(seed, "seed").number, word_of(offset, "offset").number, layer};
    {
      const py::gil_scoped_release released;
      uniforms(draw, first, to.array);
    }
    return out;
  });
  m.def("thresholds", [](py::handle x, float scale, float limit) {
    const HeldArray from(x, "x");
    const py::object out = py::array_t<uint32_t>(from.array.size);
    const HeldArray to(out, "out");
    thresholds(from.array, scale, limit, to.array);
    return out;
  });
  m.def("statistics", [](py::handle x, bool center) {
    const HeldArray from(x, "x");
    const Statistics sums = statistics(from.array, center);
    return py::make_tuple(sums.top, sums.q, sums.s);
  });
  m.def("inverse", [](float scale, float limit) {
    const Quantiser found = quantiser(scale, limit);
    return py::make_tuple(found.inverse, found.bound);
  });
}

// What was built, and what the driver says when it is asked.
void define_cuda(py::module_& m) {
  m.attr("CUDA_BUILT") = cuda::is_built() && !cuda::is_emulated();
  m.attr("EMULATED") = cuda::is_emulated();
  m.def("set_cuda_at_once", &cuda::set_at_once, py::arg("on"),
        "Have encode on a CUDA device measure and encode in one launch, or in two. For tests and measurements.");
  m.def("cuda_info", [] {
    const auto text_or_none = [](const std::string& text) -> py::object {
      if (text.empty()) return py::none();
      return py::str(text);
    };
    const auto version_of = [](int number) {
      return number == 0 ? std::string() : std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
    };
    const cuda::Devices found = [] {
      const py::gil_scoped_release released;
      return cuda::devices();
    }();
    py::list devices;
    for (const cuda::Device& device : found.all) {
      py::dict entry;
      entry["name"] = device.name;
      entry["compute_capability"] = std::to_string(device.major) + "." + std::to_string(device.minor);
      entry["memory"] = device.memory;
      devices.append(entry);
    }
    py::dict info;
    info["built"] = cuda::is_built() && !cuda::is_emulated();
    info["toolkit"] = text_or_none(TERNGRAD_CUDA_TOOLKIT);
    info["architectures"] = text_or_none(TERNGRAD_CUDA_ARCHITECTURES);
    info["driver"] = text_or_none(version_of(found.driver));
    info["devices"] = devices;
    info["error"] = text_or_none(found.error);
    return info;
  });
}

constexpr const char* kGetNumThreads = R"(Return the number of threads that one call may use.

Returns
-------
int
    That of the last `set_num_threads`; before it TERNGRAD_KERNELS_NUM_THREADS, or else the number of processors that
    this process may use.
)";

constexpr const char* kSetNumThreads = R"(Limit the number of threads that one call may use, in this process.

Parameters
----------
n : int
    Number of threads, 1 to 1024.

Raises
------
TypeError
    If `n` is not an int.
ValueError
    If `n` is not in that range.
)";

void define_errors(py::module_& m) {
  py::register_exception<CorruptError>(m, "CorruptMessage", PyExc_ValueError).doc() =
      "A message is damaged: its bytes are not ones that this package writes. The text says where.";
  py::register_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const TypeError& error) {
      PyErr_SetString(PyExc_TypeError, error.what());
    } catch (const ValueError& error) {
      PyErr_SetString(PyExc_ValueError, error.what());
    } catch (const BufferError& error) {
      PyErr_SetString(PyExc_BufferError, error.what());
    }
  });
}

}  // namespace

PYBIND11_MODULE(_core, m, py::mod_gil_not_used()) {
  m.doc() = "The compiled part of terngrad_kernels. Internal: its names may change in any release.";
  define_errors(m);
  try {
    select_isa_from_environment();
    set_num_threads_from_environment();
  } catch (const ValueError& error) {
    throw py::value_error(error.what());
  }
  define_arrays(m);
  define_layout(m);
  define_operations(m);
  define_inner_values(m);
  define_xla_handlers(m);
  m.def("isas", &runnable_isas);
  m.def("built_isas", &built_isas);
  m.def("isa", &selected_isa);
  m.def("set_isa", &select_isa);
  m.def("get_num_threads", &get_num_threads, kGetNumThreads);
  m.def("set_num_threads", [](py::handle n) { set_num_threads(whole_of(n, "n")); }, py::arg("n"), kSetNumThreads);
  define_cuda(m);
  m.attr("COMPILER") = TERNGRAD_COMPILER;
  m.attr("VERSION") = TERNGRAD_VERSION;
}

}  // namespace terngrad
