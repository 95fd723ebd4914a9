// Runs PTX on the host: what translate.py's C++ calls. A kernel's threads are fibers (../cuda_emulation/fibers.h); each
// access to memory is checked for its state space, its alignment, for bytes that nobody wrote, and for races.
#pragma once

#include <cstddef>

#include "../cuda_emulation/fibers.h"
#include "instructions.h"

namespace ptx {

enum class Space : u8 { generic, global, shared, local, param };
enum class Kind : u8 { read, write, update };

// An instruction that reaches memory, or at which threads meet.
struct Site {
  u32 line;
  Space space;
  Kind kind;
  bool is_strong;  // volatile or atomic: no race with its like
  u8 bytes;
  const char* text;
};

struct Slot {
  u32 at;
  u32 bytes;
};

// What instructions are counted as.
constexpr int kClasses = 13;
extern const char* const kClassNames[kClasses];

// A basic block: how many instructions of each class.
struct Basic {
  u32 function;
  u16 instructions[kClasses];
};

struct Function {
  const char* name;
  void (*entry)();  // null: is only called by others
  u32 most_threads;
  u32 parameter_count;
  const Slot* parameters;
  u32 shared_bytes;
  u32 shared_count;
  const Slot* shared;
};

struct Module {
  const char* file;
  const Function* functions;
  u32 function_count;
  const Site* sites;
  u32 site_count;
  const Basic* basics;
  u64* hits;  // of each basic block
  u32 basic_count;
};

struct Registered {
  explicit Registered(const Module& module);
};

// The bytes of a read or an update, on the host, where nothing is wrong with it; and a write.
unsigned char* at(const Site& site, u64 address);
void store(const Site& site, u64 address, const void* values, size_t bytes);
// To parameters of functions.
inline void store(unsigned char* to, const void* values, size_t bytes) { memcpy(to, values, bytes); }
const unsigned char* parameters();

template <class T>
PTX_INSTRUCTION T get(const unsigned char* from) {
  T to;
  memcpy(&to, from, sizeof to);
  return to;
}
template <class T>
PTX_INSTRUCTION void put(unsigned char* to, T value) {
  memcpy(to, &value, sizeof value);
}

// Where shared memory begins in its window.
constexpr u64 kSharedBase = 1024;
u64 generic_of_shared(u64 address);
u64 shared_of_generic(u64 address);
u64 generic_of_param(u64 address);

[[noreturn]] void stop_at(const Site& site, const char* what);

template <class T>
PTX_INSTRUCTION T quotient(const Site& site, T a, T b) {
  if (b == 0) stop_at(site, "division by zero");
  if (std::is_signed_v<T> && b == static_cast<T>(-1))
    return static_cast<T>(0 - static_cast<std::make_unsigned_t<T>>(a));
  return static_cast<T>(a / b);
}
template <class T>
PTX_INSTRUCTION T remainder(const Site& site, T a, T b) {
  if (b == 0) stop_at(site, "remainder by zero");
  if (std::is_signed_v<T> && b == static_cast<T>(-1)) return 0;
  return static_cast<T>(a % b);
}

// ---- threads that meet

inline u32 lane() { return emulation::thread_index.x % emulation::kLanes; }

void bar_sync(const Site& site, u32 barrier);
void bar_warp_sync(const Site& site, u32 mask);
void membar();
void nanosleep();
// Before an access that others wait for or race with: they may come first.
inline void strong() { emulation::step(); }

enum class Shuffle { up, down, butterfly, index };
u32 shuffle(const Site& site, Shuffle how, bool* inside, u32 value, u32 b, u32 c, u32 mask);
// A bit for each lane.
u32 ballot(const Site& site, bool predicate, u32 mask);

}  // namespace ptx
