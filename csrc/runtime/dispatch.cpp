#include "dispatch.h"

#include <atomic>
#include <cstdlib>

#include "errors.h"

namespace terngrad {

namespace {

struct Isa {
  Kernels kernels;
  bool (*runs_here)();
};

#define TERNGRAD_KERNELS_OF(isa)                                                                             \
  Kernels {                                                                                                  \
    #isa, isa::scales, isa::encode, isa::ternarize, isa::decode, isa::decode_sum, isa::sum_trits, isa::clip, \
        isa::pack, isa::unpack                                                                               \
  }

// Narrowest first.
const Isa kIsas[] = {
    {TERNGRAD_KERNELS_OF(scalar), [] { return true; }},
#if defined(TERNGRAD_HAS_AVX2)
    {TERNGRAD_KERNELS_OF(avx2),
     [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"); }},
#endif
#if defined(TERNGRAD_HAS_AVX512)
    {TERNGRAD_KERNELS_OF(avx512),
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
     }},
#endif
#if defined(TERNGRAD_HAS_NEON)
    {TERNGRAD_KERNELS_OF(neon), [] { return true; }},  // every AArch64 processor has it
#endif
};

#undef TERNGRAD_KERNELS_OF

const Kernels& widest() {
  const Isa* best = &kIsas[0];
  for (const Isa& isa : kIsas) {
    if (isa.runs_here()) best = &isa;
  }
  return best->kernels;
}

std::atomic<const Kernels*> selected{nullptr};

}  // namespace

const Kernels& kernels() {
  const Kernels* chosen = selected.load(std::memory_order_acquire);
  return chosen ? *chosen : widest();
}

std::vector<std::string> built_isas() {
  std::vector<std::string> names;
  for (const Isa& isa : kIsas) names.emplace_back(isa.kernels.isa);
  return names;
}

std::vector<std::string> runnable_isas() {
  std::vector<std::string> names;
  for (const Isa& isa : kIsas) {
    if (isa.runs_here()) names.emplace_back(isa.kernels.isa);
  }
  return names;
}

bool isa_is_selected() { return selected.load(std::memory_order_acquire) != nullptr; }

std::string selected_isa() { return kernels().isa; }

void select_isa(const std::string& name) {
  std::string choices;
  for (const Isa& isa : kIsas) {
    if (!isa.runs_here()) continue;
    if (isa.kernels.isa == name) {
      selected.store(&isa.kernels, std::memory_order_release);
      return;
    }
    choices += choices.empty() ? "" : ", ";
    choices += isa.kernels.isa;
  }
  throw ValueError("instruction set '" + name + "' cannot run here; choices: " + choices);
}

void select_isa_from_environment() {
  const char* wanted = std::getenv("TERNGRAD_KERNELS_ISA");
  if (wanted && *wanted) {
    try {
      select_isa(wanted);
    } catch (const ValueError& error) {
      throw ValueError(std::string("TERNGRAD_KERNELS_ISA: ") + error.what());
    }
  } else {
    selected.store(&widest(), std::memory_order_release);
  }
}

}  // namespace terngrad
