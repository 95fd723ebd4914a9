// Times the kernels of every instruction set beside the bounds that they are held against, on one thread, with no
// Python in the way: Philox alone, a plain read, a memset. Writes JSON. Built with -DTERNGRAD_KERNELS_BENCH=ON.
//
// All rows of one size are measured in turn, round after round, and the median of the rounds is taken: what disturbs
// the machine disturbs every row.
#include <sched.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "../csrc/runtime/dispatch.h"
#include "../csrc/runtime/float_environment.h"
#include "bounds.h"

namespace {

using terngrad::DType;
using terngrad::Packing;

constexpr int kRounds = 15;
constexpr double kSecondsARound = 0.02;

struct Row {
  std::string name;
  std::string isa;
  std::function<void()> work;
  std::vector<double> seconds;
  int repeats = 1;
};

cpu_set_t usable;

// Keeps the calling thread on the `which`-th usable processor, so that all rows have the same caches.
void pin(int which) {
  for (int processor = 0; processor < CPU_SETSIZE; ++processor) {
    if (!CPU_ISSET(processor, &usable) || which-- > 0) continue;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(processor, &one);
    sched_setaffinity(0, sizeof one, &one);
    return;
  }
}

double time_of(const std::function<void()>& work, int repeats) {
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < repeats; ++i) work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / repeats;
}

// The halves of n elements, on two threads, each on a processor of its own.
template <class F>
void on_two_threads(int64_t n, const F& work) {
  std::thread other([&] {
    pin(1);
    work(n / 2, n - n / 2);
  });
  work(0, n / 2);
  other.join();
}

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

// Normal enough, from integers: the sum of four uniforms.
std::vector<float> gradient(int64_t n) {
  std::vector<float> x(static_cast<size_t>(n));
  uint64_t state = 1;
  for (float& value : x) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    const int64_t sum = static_cast<int64_t>((state >> 48 & 0xffff) + (state >> 32 & 0xffff) + (state >> 16 & 0xffff)) +
                        static_cast<int64_t>(state >> 13 & 0xffff) - 131072;
    value = static_cast<float>(sum) * 0x1p-16f;
  }
  return x;
}

void measure(int64_t n, const char* place, const std::string& only, bool* first) {
  const std::vector<float> x = gradient(n);
  std::vector<uint8_t> payload(static_cast<size_t>(n));
  std::vector<uint8_t> base3(static_cast<size_t>(n));
  std::vector<int8_t> trits(static_cast<size_t>(n));
  std::vector<float> out(static_cast<size_t>(n));
  const terngrad::Draw draw{123, 456, 7};
  const terngrad::Quantiser quantiser = terngrad::quantiser_of(terngrad::Scale{1.0f, 1.0f});
  static terngrad::StripeSums sums;
  const int64_t stripes = (n + terngrad::kStripe - 1) / terngrad::kStripe;

  const uint8_t* const payloads[] = {payload.data(), payload.data(), payload.data(), payload.data()};
  const uint8_t* const payloads3[] = {base3.data(), base3.data(), base3.data(), base3.data()};
  const float worth[] = {0.25f, 0.25f, 0.25f, 0.25f};
  const terngrad::Terms one{payloads, worth, 1};
  const terngrad::Terms one3{payloads3, worth, 1};
  const terngrad::Terms four{payloads, worth, 4};
  const terngrad::Terms four3{payloads3, worth, 4};
  // Messages to add lie apart, as they come from workers. Either packing takes what they hold.
  std::vector<std::vector<uint8_t>> messages;
  std::vector<const uint8_t*> addends;
  for (uint8_t i = 0; i < 8; ++i) messages.emplace_back(static_cast<size_t>(n / 4), i);
  for (const auto& message : messages) addends.push_back(message.data());
  const std::vector<Packing> two_bit_addends(addends.size(), Packing::two_bit);
  const std::vector<Packing> base3_addends(addends.size(), Packing::base3);
  std::vector<uint8_t> counts(static_cast<size_t>(n));

  std::vector<Row> rows;
  rows.push_back({"read", "", [&] { terngrad::bench::read(x.data(), n); }, {}});
  // Not to zeros: memory of Zen 4 takes those more than twice as fast as anything else.
  rows.push_back({"memset", "", [&] { memset(out.data(), 1, out.size() * sizeof(float)); }, {}});
  const auto fill = [&](int64_t from, int64_t count) {
    memset(out.data() + from, 1, static_cast<size_t>(count) * sizeof(float));
  };
  const auto read = [&](int64_t from, int64_t count) { terngrad::bench::read(x.data() + from, count); };
  if (n > 1 << 20) rows.push_back({"read, 2 threads", "", [&, read] { on_two_threads(n, read); }, {}});
  if (n > 1 << 20) rows.push_back({"memset, 2 threads", "", [&, fill] { on_two_threads(n, fill); }, {}});
  const std::string in_use = terngrad::selected_isa();
  for (const std::string& isa : terngrad::runnable_isas()) {
    terngrad::select_isa(isa);
    const terngrad::Kernels& k = terngrad::kernels();
    const auto add = [&](const std::string& name, std::function<void()> work) {
      rows.push_back({name, isa, std::move(work), {}});
    };
    if (isa != "scalar") add("philox", [&, isa] { terngrad::bench::philox(isa, draw, n); });
    add("scales", [&] { k.scales(x.data(), DType::float32, n, 0, stripes, false, &sums); });
    add("encode two_bit",
        [&] { k.encode(x.data(), DType::float32, n, 0, draw, quantiser, Packing::two_bit, payload.data()); });
    add("encode base3",
        [&] { k.encode(x.data(), DType::float32, n, 0, draw, quantiser, Packing::base3, base3.data()); });
    add("ternarize", [&] { k.ternarize(x.data(), DType::float32, n, 0, draw, quantiser, trits.data()); });
    add("decode two_bit", [&] { k.decode(payload.data(), Packing::two_bit, n, 1.0f, DType::float32, out.data()); });
    add("decode base3", [&] { k.decode(base3.data(), Packing::base3, n, 1.0f, DType::float32, out.data()); });
    add("accumulate two_bit", [&] { k.decode_sum(one, Packing::two_bit, n, false, DType::float32, out.data()); });
    add("accumulate base3", [&] { k.decode_sum(one3, Packing::base3, n, false, DType::float32, out.data()); });
    add("decode_sum 4 two_bit", [&] { k.decode_sum(four, Packing::two_bit, n, true, DType::float32, out.data()); });
    add("decode_sum 4 base3", [&] { k.decode_sum(four3, Packing::base3, n, true, DType::float32, out.data()); });
    for (const int64_t workers : {2, 4, 8}) {  // 8 need counts of 8 bits
      const Packing packing = workers > 7 ? Packing::counts8 : Packing::counts4;
      for (const auto* packings : {&two_bit_addends, &base3_addends}) {
        const std::string of = packings == &base3_addends ? " base3" : " two_bit";
        add("sum_trits " + std::to_string(workers) + of, [&, workers, packing, packings] {
          k.sum_trits({addends.data(), packings->data(), workers}, n, packing, counts.data());
        });
      }
    }
    add("unpack two_bit", [&] { k.unpack(payload.data(), n, Packing::two_bit, trits.data()); });
    add("unpack base3", [&] { k.unpack(base3.data(), n, Packing::base3, trits.data()); });
  }
  terngrad::select_isa(in_use);
  const auto unwanted = [&](const Row& row) { return (row.isa + " " + row.name).find(only) == std::string::npos; };
  rows.erase(std::remove_if(rows.begin(), rows.end(), unwanted), rows.end());
  for (Row& row : rows) {
    row.work();
    row.repeats = std::max(1, static_cast<int>(kSecondsARound / time_of(row.work, 1)));
  }
  for (int round = 0; round < kRounds; ++round) {
    for (Row& row : rows) row.seconds.push_back(time_of(row.work, row.repeats));
  }
  for (const Row& row : rows) {
    const double scale = 1e9 / static_cast<double>(n);
    std::printf(
        "%s\n  {\"name\": \"%s\", \"isa\": \"%s\", \"elements\": %lld, \"place\": \"%s\", \"ns_per_element\": %.4f, "
        "\"fastest\": %.4f}",
        *first ? "" : ",", row.name.c_str(), row.isa.c_str(), static_cast<long long>(n), place,
        median(row.seconds) * scale, *std::min_element(row.seconds.begin(), row.seconds.end()) * scale);
    *first = false;
  }
}

}  // namespace

// An argument chooses the rows whose instruction set and name have it in them: "avx2 decode".
int main(int count, char** arguments) {
  const terngrad::FloatEnvironment environment;
  terngrad::select_isa_from_environment();
  const std::string only = count > 1 ? arguments[1] : "";
  sched_getaffinity(0, sizeof usable, &usable);
  pin(0);
  bool first = true;
  std::printf("[");
  measure(1 << 16, "L2", only, &first);
  measure(25600000, "memory", only, &first);
  std::printf("\n]\n");
  return 0;
}
