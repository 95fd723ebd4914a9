// Which instruction set runs.
#pragma once

#include <string>
#include <vector>

#include "../kernels/kernels.h"
#include "export.h"

namespace terngrad {

// The widest that this processor can run, or what TERNGRAD_KERNELS_ISA or select_isa asked for.
const Kernels& kernels();

// Names, narrowest first: all that were built, and those of them that this processor can run.
TERNGRAD_API std::vector<std::string> built_isas();
TERNGRAD_API std::vector<std::string> runnable_isas();

TERNGRAD_API std::string selected_isa();
// Whether select_isa or select_isa_from_environment has chosen one already.
bool isa_is_selected();
// Throws ValueError, with the choices, if `name` cannot run here.
TERNGRAD_API void select_isa(const std::string& name);
// The widest, or what TERNGRAD_KERNELS_ISA says. Throws as select_isa does.
TERNGRAD_API void select_isa_from_environment();

}  // namespace terngrad
