#include "memory.h"

#include <cstdlib>

namespace ptx {

namespace {

using emulation::block_index;
using emulation::kLanes;
using emulation::thread_index;

constexpr u32 kStrong = u32{1} << 31;
constexpr u32 kMostEpochs = 3'000'000'000;
constexpr size_t kMostPages = 8192;  // 100 KB each

}  // namespace

Memory::Memory(Report report) : report_(report) {}

void Memory::join(Fences* into, const Fences& from) {
  for (const auto& [who, fence] : from) {
    Fence& known = (*into)[who];
    if (known.fences < fence.fences) known = fence;
  }
}

void Memory::move(Knowledge* into, Knowledge* from) {
  join(&into->before, from->before);
  join(&into->seen, from->seen);
  from->before.clear();
  from->seen.clear();
}

void Memory::launch_begins(u32 shared_bytes, u32 threads) {
  first_epoch_ += static_cast<u32>(epochs_.size());
  epochs_.clear();
  left_.clear();
  if (first_epoch_ > kMostEpochs || pages_.size() > kMostPages) {
    for (auto it = pages_.begin(); it != pages_.end();) {
      bool kept = false;
      for (const bool undefined : it->second->undefined) kept |= undefined;
      if (kept) {
        memset(static_cast<void*>(it->second->cells), 0, sizeof it->second->cells);
        ++it;
      } else {
        it = pages_.erase(it);
      }
    }
    last_page_ = nullptr;
  }
  if (first_epoch_ > kMostEpochs) {
    for (Block& each : blocks_) each.shared.clear();
    first_epoch_ = 1;
  }
  for (Block& each : blocks_) {
    if (each.shared.size() < shared_bytes) each.shared.resize(shared_bytes);
    each.threads.resize(threads);
    each.warps.resize((threads + kLanes - 1) / kLanes);
  }
}

void Memory::block_begins() {
  Block& own = block();
  own.knows = {};
  own.meetings = 0;
  own.first_epoch = first_epoch_ + static_cast<u32>(epochs_.size());
  own.has_news = false;
  for (Thread& each : own.threads) each = {};
  for (Warp& each : own.warps) each = {};
}

void Memory::block_meets() {
  Block& own = block();
  ++own.meetings;
  for (Thread& each : own.threads) each.epoch = 0;
  if (!own.has_news) return;
  own.has_news = false;
  for (Thread& each : own.threads) move(&own.knows, &each.knows);
  for (Warp& each : own.warps) move(&own.knows, &each.knows);
}

void Memory::warp_meets() {
  Block& own = block();
  Warp& of = warp();
  ++of.meetings;
  const u32 first = thread_index.x / kLanes * kLanes;
  for (u32 i = first; i < first + kLanes; ++i) {
    own.threads[i].epoch = 0;
    if (own.has_news) move(&of.knows, &own.threads[i].knows);
  }
}

void Memory::fence() {
  Thread& own = thread();
  own.epoch = 0;
  ++own.fences;
  join(&own.knows.before, own.knows.seen);
  join(&own.knows.before, warp().knows.seen);
  join(&own.knows.before, block().knows.seen);
  own.knows.before[static_cast<u64>(block_index.x) << 10 | thread_index.x] =
      Fence{block().meetings, warp().meetings, own.fences};
  block().has_news = true;
}

// What a strong access takes from an address, and leaves there.
void Memory::synchronize(const Site& site, u64 address) {
  Fences& left = left_[address];
  if (site.kind != Kind::write) {
    join(&thread().knows.seen, left);
    block().has_news = true;
  } else {
    left.clear();
  }
  if (site.kind == Kind::read) return;
  join(&left, thread().knows.before);
  join(&left, warp().knows.before);
  join(&left, block().knows.before);
}

u32 Memory::epoch_of_thread() {
  Thread& own = thread();
  if (own.epoch == 0) {
    own.epoch = first_epoch_ + static_cast<u32>(epochs_.size());
    epochs_.push_back(Epoch{block_index.x, static_cast<u16>(thread_index.x), static_cast<u16>(own.fences),
                            block().meetings, warp().meetings});
  }
  return own.epoch;
}

bool Memory::covers(const Fences& fences, const Epoch& epoch) {
  const u64 first = static_cast<u64>(epoch.block) << 10;
  for (auto it = fences.lower_bound(first); it != fences.end() && it->first < first + 1024; ++it) {
    const u32 by = static_cast<u32>(it->first & 1023);
    const Fence& fence = it->second;
    if (epoch.block_meetings < fence.block_meetings) return true;
    if (by / kLanes == epoch.thread / kLanes && epoch.warp_meetings < fence.warp_meetings) return true;
    if (by == epoch.thread && epoch.fences < fence.fences) return true;
  }
  return false;
}

// Or of this thread. `since`: records before that epoch are of a launch or block that is over.
bool Memory::is_before_now(const Record& record, u32 since) {
  if (record.epoch < since || record.epoch == thread().epoch) return true;
  const Epoch& epoch = epochs_[record.epoch - first_epoch_];
  if (epoch.block == block_index.x) {
    if (epoch.thread == thread_index.x || epoch.block_meetings < block().meetings) return true;
    if (epoch.thread / kLanes == thread_index.x / kLanes && epoch.warp_meetings < warp().meetings) return true;
  }
  return covers(thread().knows.before, epoch) || covers(warp().knows.before, epoch) ||
         covers(block().knows.before, epoch);
}

void Memory::check(Cell& cell, const Site& site, u32 number, u64 address, u32 since, bool same) {
  const Record now{epoch_of_thread(), number | (site.is_strong ? kStrong : 0)};
  const auto against = [&](const Record& record, const char* what) {
    if (site.is_strong && (record.site & kStrong) != 0) return;
    if (is_before_now(record, since)) return;
    const Epoch& epoch = epochs_[record.epoch - first_epoch_];
    const Access earlier{epoch.block, epoch.thread, record.site & ~kStrong};
    report_(site, address, what, &earlier);
  };
  if (site.kind == Kind::read) {
    against(cell.write, "a race: reads what another thread has written");
    Record& kept = is_before_now(cell.reads[0], since) ? cell.reads[0] : cell.reads[1];
    kept = now;
    return;
  }
  static const bool is_strict = std::getenv("TERNGRAD_PTX_STRICT") != nullptr;
  if (is_strict || !same || (cell.write.site & ~kStrong) != number) {
    against(cell.write, "a race: writes what another thread has written");
  }
  for (const Record& read : cell.reads) against(read, "a race: writes what another thread has read");
  cell.write = now;
  cell.reads[0] = cell.reads[1] = {};
}

void Memory::check_shared(const Site& site, u32 number, u64 offset, bool same) {
  const u32 since = block().first_epoch;
  for (u64 i = offset; i < offset + site.bytes; ++i) {
    Cell& cell = block().shared[i];
    if (site.kind != Kind::write && cell.write.epoch < since) {
      report_(site, i, "reads shared memory that the block has not written", nullptr);
    }
    check(cell, site, number, i, since, same);
  }
  if (site.is_strong) synchronize(site, reinterpret_cast<u64>(&block().shared[offset]));
}

void Memory::check_global(const Site& site, u32 number, const unsigned char* at, bool same) {
  const u64 address = reinterpret_cast<u64>(at);
  Page& page = page_of(address);  // an aligned access lies in one
  for (u64 i = address % kPage; i < address % kPage + site.bytes; ++i) {
    if (site.kind != Kind::write && page.undefined[i]) {
      report_(site, address, "reads global memory that nobody has written", nullptr);
    }
    if (site.kind != Kind::read) page.undefined[i] = false;
    check(page.cells[i], site, number, address, first_epoch_, same);
  }
  if (site.is_strong) synchronize(site, address);
}

Memory::Page& Memory::page_of(u64 address) {
  const u64 number = address / kPage;
  if (last_page_ && last_number_ == number) return *last_page_;
  std::unique_ptr<Page>& page = pages_[number];
  if (!page) page = std::make_unique<Page>();
  last_number_ = number;
  last_page_ = page.get();
  return *page;
}

void Memory::mark(const void* at, size_t bytes, bool undefined) {
  const u64 begin = reinterpret_cast<u64>(at);
  for (u64 i = begin; i < begin + bytes; ++i) {
    if (undefined || pages_.count(i / kPage) > 0) page_of(i).undefined[i % kPage] = undefined;
  }
}

}  // namespace ptx
