// What the tests in C++ share: random bits, memory between guards, and the count of failures.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <vector>

#include "../../csrc/contract/message.h"

namespace terngrad {
namespace tests {

using Bytes = std::vector<unsigned char>;

// splitmix64
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t bits() {
    uint64_t x = state_ += 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
  }
  int64_t below(int64_t n) { return static_cast<int64_t>(bits() >> 33) % n; }

 private:
  uint64_t state_;
};

// Memory whose neighbours on both sides fault.
class Pages {
 public:
  explicit Pages(int64_t bytes) : page_(sysconf(_SC_PAGESIZE)), size_((bytes + 127) / page_ * page_ + page_) {
    void* start = mmap(nullptr, static_cast<size_t>(size_ + 2 * page_), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED) std::abort();
    start_ = static_cast<unsigned char*>(start) + page_;
    if (mprotect(start_, static_cast<size_t>(size_), PROT_READ | PROT_WRITE) != 0) std::abort();
  }
  ~Pages() { munmap(start_ - page_, static_cast<size_t>(size_ + 2 * page_)); }
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;

  unsigned char* begin() const { return start_; }
  unsigned char* end() const { return start_ + size_; }

 private:
  int64_t page_;
  int64_t size_;
  unsigned char* start_;
};

// Where an array lies in its pages: at an address of that alignment (mod 64), as near to a guard as it allows; or right
// before the guard.
struct Place {
  int64_t alignment;  // -1: right before the guard, whatever alignment that gives
  bool at_end;

  unsigned char* in(const Pages& pages, int64_t bytes) const {
    if (alignment < 0) return pages.end() - bytes;
    if (!at_end) return pages.begin() + alignment;
    const int64_t last = pages.end() - bytes - pages.begin();
    return pages.begin() + last - ((last - alignment) & 63);
  }
};

constexpr unsigned char kCanary = 0xC3;

// Writes canaries around an array, up to the guards or 64 bytes; and says whether they are still there.
inline void set_canaries(const Pages& pages, unsigned char* array, int64_t bytes) {
  for (unsigned char* at = array; at != pages.begin() && at > array - 64;) *--at = kCanary;
  for (unsigned char* at = array + bytes; at != pages.end() && at < array + bytes + 64;) *at++ = kCanary;
}
inline bool canaries_live(const Pages& pages, const unsigned char* array, int64_t bytes) {
  bool live = true;
  for (const unsigned char* at = array; at != pages.begin() && at > array - 64;) live &= *--at == kCanary;
  for (const unsigned char* at = array + bytes; at != pages.end() && at < array + bytes + 64;) live &= *at++ == kCanary;
  return live;
}

// ---- failures

inline std::atomic<int64_t> checks{0};
inline std::atomic<int64_t> failures{0};

__attribute__((format(printf, 1, 2))) inline void fail(const char* format, ...) {
  static std::mutex lock;
  const std::lock_guard<std::mutex> guard(lock);
  if (++failures > 20) return;
  va_list arguments;
  va_start(arguments, format);
  std::vprintf(format, arguments);
  va_end(arguments);
  std::printf("\n");
}

inline int report(const char* what) {
  std::printf("%s: %lld checks, %lld failures\n", what, static_cast<long long>(checks),
              static_cast<long long>(failures));
  return failures == 0 && checks > 0 ? 0 : 1;
}

inline const char* name_of(DType dtype) {
  const char* names[] = {"float32", "float16", "bfloat16", "float64"};
  return names[static_cast<int>(dtype)];
}
inline const char* name_of(Packing packing) {
  const char* names[] = {"two_bit", "base3", "float32", "counts4", "counts8", "counts16"};
  return names[static_cast<int>(packing)];
}

constexpr DType kDTypes[] = {DType::float32, DType::float16, DType::bfloat16, DType::float64};
constexpr Packing kTernary[] = {Packing::two_bit, Packing::base3};
constexpr Packing kTiled[] = {Packing::two_bit, Packing::base3, Packing::counts4, Packing::counts8};
constexpr Packing kCounts[] = {Packing::counts4, Packing::counts8, Packing::counts16};
constexpr Packing kPackings[] = {Packing::two_bit, Packing::base3,   Packing::float32,
                                 Packing::counts4, Packing::counts8, Packing::counts16};

}  // namespace tests
}  // namespace terngrad
