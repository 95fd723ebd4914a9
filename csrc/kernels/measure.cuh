// Measuring: the sums of every stripe, by a warp each, or by a block each; the block that is the last of its group puts
// them together.
#pragma once

#include "device.cuh"

namespace terngrad {
namespace cuda {

namespace {

// Rows that a warp asks for at once.
template <class T>
constexpr int kRowsAhead = sizeof(T) == 8 ? 8 : 16;

struct StripeSum {
  float q;
  float s;
  uint32_t top;
};

// The columns that one thread sums.
template <int Count>
struct ColumnsOf {
  float q[Count] = {};
  float s[Count] = {};
  uint32_t top = 0;

  template <bool Center>
  __device__ __forceinline__ void add(int j, float x, float origin) {
    const uint32_t magnitude = magnitude_bits(x);
    if (magnitude > top) top = magnitude;
    const float difference = Center ? x - origin : x;
    q[j] = fmaf(difference, difference, q[j]);
    if (Center) s[j] += difference;
  }
};
using Columns = ColumnsOf<4>;

// Column i takes column i + 64, then 32, 16, 8, 4 (which are lanes), 2, 1.
TERNGRAD_DEVICE float sum_columns(float (&columns)[4]) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) {
#pragma unroll
    for (int j = 0; j < 4; ++j) columns[j] += __shfl_down_sync(kAllLanes, columns[j], static_cast<unsigned>(lanes));
  }
  return (columns[0] + columns[2]) + (columns[1] + columns[3]);
}

template <bool Center>
TERNGRAD_DEVICE StripeSum sum_up(Columns& columns) {
  uint32_t top = columns.top;
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    const uint32_t other = __shfl_down_sync(kAllLanes, top, static_cast<unsigned>(lanes));
    top = other > top ? other : top;
  }
  return StripeSum{sum_columns(columns.q), Center ? sum_columns(columns.s) : 0.0f, top};
}

template <bool Center, class Source>
TERNGRAD_DEVICE void add_rest(const Source& source, int64_t begin, int64_t end, float origin, Columns* columns) {
  for (int64_t row = begin; row < end; row += kColumns) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int64_t element = row + 4 * lane_of() + j;
      if (element < end) columns->add<Center>(j, source.one(element), origin);
    }
  }
}

// All rows of a stripe that come in whole batches; returns where they end.
template <bool Center, bool Vectors, Again Kept, class T>
TERNGRAD_DEVICE int64_t add_batches(const ArraySource<T>& source, int64_t row, int64_t end, float origin,
                                    Columns* columns) {
  for (; row + kRowsAhead<T> * kColumns <= end; row += kRowsAhead<T> * kColumns) {
    Four<T> ahead[kRowsAhead<T>];
#pragma unroll
    for (int i = 0; i < kRowsAhead<T>; ++i) {
      ahead[i] = load_four<T>(source.base, row + i * kColumns + 4 * lane_of(), Vectors, Kept);
    }
#pragma unroll
    for (int i = 0; i < kRowsAhead<T>; ++i) {
      float x[4];
      widen_four<ScaleOrigin::measured>(ahead[i], x);
#pragma unroll
      for (int j = 0; j < 4; ++j) columns->add<Center>(j, x[j], origin);
    }
  }
  return row;
}

// Elements [begin, end) of a group, a stripe or the last one's rest.
template <bool Center, class T>
TERNGRAD_DEVICE StripeSum sum_stripe(const ArraySource<T>& source, int64_t begin, int64_t end, float origin,
                                     bool kept) {
  Columns columns;
  int64_t row = begin;
  if (!source.vectors) {
    row = add_batches<Center, false, Again::yes>(source, row, end, origin, &columns);
  } else if (kept) {
    row = add_batches<Center, true, Again::yes>(source, row, end, origin, &columns);
  } else {
    row = add_batches<Center, true, Again::no>(source, row, end, origin, &columns);
  }
  for (; row + kColumns <= end; row += kColumns) {
    float x[4];
    widen_four<ScaleOrigin::measured>(load_four<T>(source.base, row + 4 * lane_of(), source.vectors), x);
#pragma unroll
    for (int j = 0; j < 4; ++j) columns.add<Center>(j, x[j], origin);
  }
  add_rest<Center>(source, row, end, origin, &columns);
  return sum_up<Center>(columns);
}

// A stripe that a whole block sums: asked for at once, since few blocks are at work then, and what counts is how long
// one of them waits.
struct Together {
  alignas(16) float x[kStripe];
  float q[kColumns];
  float s[kColumns];
  uint32_t top[kColumns];
};

// As sum_stripe, of all threads of a block; the result is warp 0's.
template <bool Center, class T>
TERNGRAD_DEVICE StripeSum sum_together(const ArraySource<T>& source, int64_t begin, int64_t end, float origin,
                                       Together* shared, Again kept = Again::yes) {
  constexpr int kParts = static_cast<int>(kStripe) / (4 * kThreads);
  const auto count = static_cast<int>(end - begin);
  Four<T> ahead[kParts];
#pragma unroll
  for (int i = 0; i < kParts; ++i) {
    const int element = 4 * (i * kThreads + static_cast<int>(threadIdx.x));
    if (element + 4 <= count) ahead[i] = load_four<T>(source.base, begin + element, source.vectors, kept);
  }
#pragma unroll
  for (int i = 0; i < kParts; ++i) {
    const int element = 4 * (i * kThreads + static_cast<int>(threadIdx.x));
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (element + 4 <= count) {
        shared->x[element + j] = converted(ahead[i].values[j]);
      } else if (element + j < count) {
        shared->x[element + j] = source.one(begin + element + j);
      }
    }
  }
  __syncthreads();
  const auto column = static_cast<int>(threadIdx.x);
  if (column < kColumns) {
    ColumnsOf<1> sums;
#pragma unroll 16
    for (int element = column; element < count; element += static_cast<int>(kColumns)) {
      sums.add<Center>(0, shared->x[element], origin);
    }
    shared->q[column] = sums.q[0];
    shared->s[column] = sums.s[0];
    shared->top[column] = sums.top;
  }
  __syncthreads();
  if (warp_of() != 0) return StripeSum{};
  Columns columns;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int from = 4 * lane_of() + j;
    columns.q[j] = shared->q[from];
    columns.s[j] = shared->s[from];
    columns.top = shared->top[from] > columns.top ? shared->top[from] : columns.top;
  }
  return sum_up<Center>(columns);
}

// The group's pieces, one behind the other. A row lies in one piece, since pieces are cut at whole units.
TERNGRAD_DEVICE StripeSum sum_stripe(const Messages& messages, const Geometry& geometry, const Group& group,
                                     int64_t begin, int64_t end) {
  Columns columns;
  int64_t before = 0;
  for (int64_t i = group.first_piece; i < group.last_piece; ++i) {
    const int64_t size = geometry.pieces[i].size;
    const int64_t from = begin > before ? begin - before : 0;
    const int64_t until = smaller_of(size, end - before);
    if (from < until) {
      const SumSource source = SumSource::at(messages, i);
      // Four rows at a time: stripes and pieces are cut at multiples of them.
      for (int64_t row = from; row < until; row += kRowGroup) {
        SumSource::Rows rows;
        source.load_rows(row + 4 * lane_of(), static_cast<int>(smaller_of(kRowGroup, until - row)), &rows);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
#pragma unroll
          for (int j = 0; j < 4; ++j) columns.add<false>(j, rows.x[k][j], 0.0f);
        }
      }
    }
    before += size;
  }
  return sum_up<false>(columns);
}

TERNGRAD_DEVICE int64_t stripes_in(const Group& group) { return (group.size + kStripe - 1) / kStripe; }

struct Fold {
  double q[kBins];
  double s[kBins];
  uint32_t top[kBins];
};
static_assert(kThreads == kBins, "a thread has a bin");

// The stripes of a group go to their bins in order, a bin a thread; then the tree. What other blocks wrote is read past
// the first-level cache. The result is thread 0's.
template <bool Center>
TERNGRAD_DEVICE Statistics fold(const Sums& sums, const Group& group, int64_t stripes, Fold* bins) {
  const int64_t first = group.first_stripe;
  const auto bin = static_cast<int>(threadIdx.x);
  double q = 0.0;
  double s = 0.0;
  uint32_t top = 0;
#pragma unroll 16
  for (int64_t stripe = bin; stripe < stripes; stripe += kBins) {
    q += static_cast<double>(__ldcg(sums.stripes.q + first + stripe));
    if (Center) s += static_cast<double>(__ldcg(sums.stripes.s + first + stripe));
    const uint32_t other = __ldcg(sums.stripes.top + first + stripe);
    top = other > top ? other : top;
  }
  bins->q[bin] = q;
  bins->s[bin] = s;
  bins->top[bin] = top;
  for (int half = static_cast<int>(kBins) / 2; half > 0; half /= 2) {
    __syncthreads();
    if (bin >= half) continue;
    bins->q[bin] += bins->q[bin + half];
    if (Center) bins->s[bin] += bins->s[bin + half];
    if (bins->top[bin + half] > bins->top[bin]) bins->top[bin] = bins->top[bin + half];
  }
  if (bin != 0) return Statistics{};
  return Statistics{bins->top[0], bins->q[0], bins->s[0]};
}

// Lane l has bins l, l + 32, ... of 256; the tree adds those of one lane first. The result is lane 0's.
constexpr int kLaneBins = static_cast<int>(kBins) / kWarp;
TERNGRAD_DEVICE double sum_bins(double (&bins)[kLaneBins]) {
#pragma unroll
  for (int half = kLaneBins / 2; half > 0; half /= 2) {
#pragma unroll
    for (int i = 0; i < half; ++i) bins[i] += bins[i + half];
  }
#pragma unroll
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
    bins[0] += __shfl_down_sync(kAllLanes, bins[0], static_cast<unsigned>(lanes));
  }
  return bins[0];
}

// As fold, by one warp, of a group of few stripes.
TERNGRAD_DEVICE Scale folded_scale(const StripeSums& sums, const Group& group) {
  if (group.size == 0) return scale_of_nothing();
  const int64_t stripes = stripes_in(group);
  double q[kLaneBins] = {};
  double s[kLaneBins] = {};
  uint32_t top = 0;
  for (int64_t first = 0; first < stripes; first += kBins) {
#pragma unroll
    for (int i = 0; i < kLaneBins; ++i) {
      const int64_t stripe = first + i * kWarp + lane_of();
      if (stripe >= stripes) continue;
      q[i] += static_cast<double>(__ldcg(sums.q + group.first_stripe + stripe));
      if (sums.center) s[i] += static_cast<double>(__ldcg(sums.s + group.first_stripe + stripe));
      const uint32_t other = __ldcg(sums.top + group.first_stripe + stripe);
      top = other > top ? other : top;
    }
  }
#pragma unroll
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
    const uint32_t other = __shfl_down_sync(kAllLanes, top, static_cast<unsigned>(lanes));
    top = other > top ? other : top;
  }
  const Statistics statistics{top, sum_bins(q), sums.center ? sum_bins(s) : 0.0};
  const Scale found = scale_of(statistics, group.size, sums.clip, sums.center);
  return Scale{__shfl_sync(kAllLanes, found.scale, 0), __shfl_sync(kAllLanes, found.limit, 0)};
}

TERNGRAD_DEVICE void store_result(const Sums& sums, int64_t group, Scale found) {
  if (sums.scale) {
    sums.scale[group] = found.scale;
    sums.limit[group] = found.limit;
  } else {
    sums.scales[group] = found;
  }
}

template <bool Center>
TERNGRAD_DEVICE void store_sums(const StripeSums& stripes, int64_t stripe, const StripeSum& found) {
  stripes.q[stripe] = found.q;
  if (Center) stripes.s[stripe] = found.s;
  stripes.top[stripe] = found.top;
}

TERNGRAD_DEVICE bool is_carried(const Geometry& geometry, const Group& group) {
  return geometry.pieces[group.first_piece].packing == Packing::float32;
}

// `sum(group, begin, end)` gives the sums of a stripe: to lane 0 of each warp, which has stripe `place` of the tile, or
// to thread 0 where the whole block has one.
template <bool Center, bool ByBlock, class Stripe>
TERNGRAD_DEVICE void measure_tile(const Geometry& geometry, const Measurement& measurement, int64_t tile, int64_t place,
                                  const Stripe& sum) {
  __shared__ Fold bins;
  __shared__ bool is_last;
  const int index = find(geometry.group_tiles, geometry.group_count, tile);
  const Group group = geometry.groups[index];
  const Sums& sums = measurement.sums;
  const bool carries = is_carried(geometry, group);
  const int64_t stripe = (tile - geometry.group_tiles[index]) * kWarps + place;
  if (carries || group.size == 0) {
    if (threadIdx.x == 0 && stripe == 0) store_result(sums, index, carries ? carried_scale() : scale_of_nothing());
    return;
  }
  const int64_t stripes = stripes_in(group);
  if (ByBlock && stripe >= stripes) return;
  if (stripe < stripes) {
    const StripeSum found = sum(group, stripe * kStripe, smaller_of((stripe + 1) * kStripe, group.size));
    if (ByBlock ? threadIdx.x == 0 : lane_of() == 0) {
      store_sums<Center>(sums.stripes, group.first_stripe + stripe, found);
    }
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();  // what the block wrote before the barrier included
    const auto blocks = static_cast<uint32_t>(ByBlock ? stripes : (stripes + kWarps - 1) / kWarps);
    is_last = blocks == 1 || atomicAdd(sums.arrived + index, 1u) == blocks - 1;
    __threadfence();
  }
  __syncthreads();
  if (!is_last) return;
  const Statistics statistics = fold<Center>(sums, group, stripes, &bins);
  if (threadIdx.x == 0) {
    store_result(sums, index, scale_of(statistics, group.size, sums.stripes.clip, Center));
    if (measurement.announced) {
      __threadfence();
      atomicExch(sums.arrived + index, kAllArrived);
    }
  }
}

}  // namespace
}  // namespace cuda
}  // namespace terngrad
