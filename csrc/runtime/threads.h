// A small pool of threads: started when first needed, fork-safe, no OpenMP (whose region in a forked child hangs).
#pragma once

#include <cstdint>

#include "export.h"

namespace terngrad {

// Threads that one call may use. Default: TERNGRAD_KERNELS_NUM_THREADS, or the processors this process may run on.
TERNGRAD_API int get_num_threads();
// Throws ValueError unless 1 <= count <= 1024.
TERNGRAD_API void set_num_threads(int64_t count);
// Throws ValueError if TERNGRAD_KERNELS_NUM_THREADS is set to something else than such a count.
TERNGRAD_API void set_num_threads_from_environment();

// A callable of a part's number, borrowed for the length of a call. (A std::function allocates, and in a part it could
// not say that it failed to.)
class Part {
 public:
  template <class F>
  Part(const F& f)
      : callable_(&f), call_([](const void* callable, int64_t part) { (*static_cast<const F*>(callable))(part); }) {}

  void operator()(int64_t part) const { call_(callable_, part); }

 private:
  const void* callable_;
  void (*call_)(const void*, int64_t);
};

// Calls part(0) ... part(parts - 1), each once, in the default floating-point environment; in any order, on any thread.
// While another call uses the pool, all parts run on the caller's thread. `part` must not throw.
void parallel(int64_t parts, const Part& part);

}  // namespace terngrad
