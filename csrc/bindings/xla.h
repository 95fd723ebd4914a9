// The operations as custom calls of XLA: what they are under jax.jit.
#pragma once

#include <pybind11/pybind11.h>

namespace terngrad {

void define_xla_handlers(pybind11::module_& module);

}  // namespace terngrad
