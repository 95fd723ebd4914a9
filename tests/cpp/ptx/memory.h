// Who has read and written each byte of shared and global memory in a launch: finds bytes that nobody wrote, and races,
// which are two accesses of different threads to a byte, one of them a write, that nothing puts in order.
//
// In order are: what comes before and after a barrier of the block, or a warp function, for its threads; and what comes
// before a fence (membar.gl is fence.sc.gpu) and after another, where between the two an atomic or volatile access has
// seen what one after the first has written. (The memory model lets barriers lie between them, for fences that are
// sequentially consistent order each other then.)
//
// Two threads that write the same value by the same instruction are not reported unless TERNGRAD_PTX_STRICT is set: to
// races of accesses that overlap wholly the memory model gives a meaning, which then is that value.
#pragma once

#include <map>
#include <memory>
#include <unordered_map>
#include <vector>

#include "runner.h"

namespace ptx {

class Memory {
 public:
  // As it is told when something is wrong.
  struct Access {
    u32 block;
    u32 thread;
    u32 site;
  };
  using Report = void (*)(const Site& site, u64 address, const char* what, const Access* earlier);

  explicit Memory(Report report);

  void launch_begins(u32 shared_bytes, u32 threads);
  void block_begins();
  void block_meets();
  void warp_meets();
  void fence();

  // An access of the thread that runs. `offset` is that in the block's shared memory. `same`: a write of what is there.
  void check_shared(const Site& site, u32 number, u64 offset, bool same);
  void check_global(const Site& site, u32 number, const unsigned char* at, bool same);

  // Global memory that nobody has written, or that the host has.
  void mark(const void* at, size_t bytes, bool undefined);

 private:
  // The time of a thread between two of its meetings or fences.
  struct Epoch {
    u32 block;
    u16 thread;
    u16 fences;
    u32 block_meetings;
    u32 warp_meetings;
  };

  // Epochs are numbered through all launches, so that the records of those before need not be cleared.
  struct Record {
    u32 epoch;
    u32 site;  // and the highest bit: a strong access
  };
  // The last write, and two reads since. A read that is not kept is not missed for good: in another order of threads
  // the write comes first.
  struct Cell {
    Record write;
    Record reads[2];
  };

  static constexpr u64 kPage = 4096;
  struct Page {
    Cell cells[kPage];
    bool undefined[kPage];
  };

  // Fences that come before something: of each thread the last one, by block << 10 | thread.
  struct Fence {
    u32 block_meetings;
    u32 warp_meetings;
    u32 fences;
  };
  using Fences = std::map<u64, Fence>;

  // `before`: that come before what the thread, warp or block does now. `seen`: that a next fence puts before it.
  struct Knowledge {
    Fences before;
    Fences seen;
  };
  struct Thread {
    Knowledge knows;
    u32 epoch;  // 0: a new one
    u32 fences;
  };
  struct Warp {
    Knowledge knows;
    u32 meetings;
  };
  struct Block {
    Knowledge knows;
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    std::vector<Cell> shared;
    u32 meetings;
    u32 first_epoch;
    bool has_news;  // some thread or warp knows of fences
  };

  static void join(Fences* into, const Fences& from);
  static void move(Knowledge* into, Knowledge* from);
  static bool covers(const Fences& fences, const Epoch& epoch);

  Block& block() { return blocks_[emulation::place]; }
  Thread& thread() { return block().threads[emulation::thread_index.x]; }
  Warp& warp() { return block().warps[emulation::thread_index.x / emulation::kLanes]; }
  u32 epoch_of_thread();
  bool is_before_now(const Record& record, u32 since);
  void check(Cell& cell, const Site& site, u32 number, u64 address, u32 since, bool same);
  void synchronize(const Site& site, u64 address);
  Page& page_of(u64 address);

  Report report_;
  Block blocks_[emulation::kMostPlaces];
  std::vector<Epoch> epochs_;
  u32 first_epoch_ = 1;  // of the launch
  std::unordered_map<u64, std::unique_ptr<Page>> pages_;
  u64 last_number_ = 0;
  Page* last_page_ = nullptr;
  std::unordered_map<u64, Fences> left_;  // at addresses, by strong writes
};

}  // namespace ptx
