// The default floating-point environment for the length of a scope: the host process may have denormals flushed or
// another rounding mode set, and the bits must not depend on it. docs/contract.md, section 1.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <cstdint>
#else
#include <cfenv>
#endif

namespace terngrad {

class FloatEnvironment {
 public:
#if defined(__x86_64__)
  // 0x1f80: round to nearest even, no flushing, all exceptions masked.
  FloatEnvironment() : saved_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
  ~FloatEnvironment() { _mm_setcsr(saved_); }
#elif defined(__aarch64__)
  // FPCR 0: round to nearest even, no flushing, NaNs and float16 as IEEE has them, no traps. (C's default environment
  // leaves the bits for the NaNs and float16 as they are.)
  FloatEnvironment() {
    asm volatile("mrs %0, fpcr" : "=r"(saved_)::"memory");
    set(0);
  }
  ~FloatEnvironment() { set(saved_); }
#else
  FloatEnvironment() {
    std::fegetenv(&saved_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~FloatEnvironment() { std::fesetenv(&saved_); }
#endif
  FloatEnvironment(const FloatEnvironment&) = delete;
  FloatEnvironment& operator=(const FloatEnvironment&) = delete;

 private:
#if defined(__x86_64__)
  unsigned saved_;
#elif defined(__aarch64__)
  static void set(uint64_t state) { asm volatile("msr fpcr, %0" ::"r"(state) : "memory"); }
  uint64_t saved_;
#else
  std::fenv_t saved_;
#endif
};

}  // namespace terngrad
