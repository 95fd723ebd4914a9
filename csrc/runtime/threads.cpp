#include "threads.h"

#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "errors.h"
#include "float_environment.h"

namespace terngrad {

namespace {

constexpr int64_t kMostThreads = 1024;

int usable_processors() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0) {
    const int count = CPU_COUNT(&set);
    if (count > 0) return count;
  }
  const unsigned count = std::thread::hardware_concurrency();
  return count > 0 ? static_cast<int>(count) : 1;
}

std::atomic<int> num_threads{0};

// Set while this thread runs a part: what the part hands to `parallel` then stays on this thread.
thread_local bool inside_part = false;

// One job at a time; its caller works too. Parts are tickets, so a thread that comes late takes nothing.
class Pool {
 public:
  bool try_run(int64_t parts, int helpers, const Part& part) {
    std::unique_lock<std::mutex> caller(caller_, std::try_to_lock);
    if (!caller.owns_lock()) return false;
    {
      std::lock_guard<std::mutex> lock(state_);
      start(helpers);
      part_ = &part;
      parts_ = parts;
      next_ = 0;
      done_ = 0;
      ++job_;
    }
    wake_.notify_all();
    work();
    std::unique_lock<std::mutex> lock(state_);
    finished_.wait(lock, [&] { return done_ == parts_; });
    part_ = nullptr;
    return true;
  }

 private:
  void start(int helpers) {
    while (static_cast<int>(threads_.size()) < helpers) {
      try {
        threads_.emplace_back([this] { serve(); });
        threads_.back().detach();
      } catch (const std::system_error&) {
        return;  // fewer threads do the same work
      }
    }
  }

  void serve() {
    uint64_t seen = 0;
    while (true) {
      {
        std::unique_lock<std::mutex> lock(state_);
        wake_.wait(lock, [&] { return job_ != seen; });
        seen = job_;
      }
      work();
    }
  }

  void work() {
    while (true) {
      const Part* part;
      int64_t ticket;
      {
        std::lock_guard<std::mutex> lock(state_);
        if (part_ == nullptr || next_ == parts_) return;
        part = part_;
        ticket = next_++;
      }
      {
        const FloatEnvironment environment;
        inside_part = true;
        (*part)(ticket);
        inside_part = false;
      }
      std::lock_guard<std::mutex> lock(state_);
      if (++done_ == parts_) finished_.notify_one();
    }
  }

  std::mutex caller_;
  std::mutex state_;
  std::condition_variable wake_;
  std::condition_variable finished_;
  std::vector<std::thread> threads_;
  const Part* part_ = nullptr;
  int64_t parts_ = 0;
  int64_t next_ = 0;
  int64_t done_ = 0;
  uint64_t job_ = 0;
};

// Never destroyed: its threads may outlive static destruction. A forked child has none of the threads, so it gets a new
// pool; the old one, whose locks may be held by threads that are gone, is left as it is.
std::atomic<Pool*> pool{nullptr};

void forget_pool() { pool.store(nullptr, std::memory_order_release); }

Pool& the_pool() {
  static const int registered = pthread_atfork(nullptr, nullptr, forget_pool);
  static_cast<void>(registered);
  Pool* current = pool.load(std::memory_order_acquire);
  if (current) return *current;
  auto* fresh = new Pool;
  if (pool.compare_exchange_strong(current, fresh, std::memory_order_acq_rel)) return *fresh;
  delete fresh;
  return *current;
}

}  // namespace

int get_num_threads() {
  const int count = num_threads.load(std::memory_order_relaxed);
  return count > 0 ? count : usable_processors();
}

void set_num_threads(int64_t count) {
  if (count < 1 || count > kMostThreads) {
    throw ValueError("n: expected 1 <= n <= " + std::to_string(kMostThreads) + ", got " + std::to_string(count));
  }
  num_threads.store(static_cast<int>(count), std::memory_order_relaxed);
}

void set_num_threads_from_environment() {
  const char* text = std::getenv("TERNGRAD_KERNELS_NUM_THREADS");
  if (!text || !*text) return;
  char* end = nullptr;
  const long long count = std::strtoll(text, &end, 10);
  if (*end != '\0' || count < 1 || count > kMostThreads) {
    throw ValueError("TERNGRAD_KERNELS_NUM_THREADS: expected a whole number from 1 to " + std::to_string(kMostThreads) +
                     ", got '" + text + "'");
  }
  set_num_threads(count);
}

void parallel(int64_t parts, const Part& part) {
  if (parts > 1 && !inside_part && the_pool().try_run(parts, static_cast<int>(parts) - 1, part)) return;
  const FloatEnvironment environment;
  for (int64_t i = 0; i < parts; ++i) part(i);
}

}  // namespace terngrad
