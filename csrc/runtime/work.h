// How an operation's work is cut for threads: by elements, at multiples of kUnit, whatever the layers. The bits do not
// depend on it.
#pragma once

#include <algorithm>

#include "layout.h"
#include "threads.h"

namespace terngrad {

// Below this, handing work to another thread costs more than it brings.
constexpr int64_t kElementsAThread = int64_t{1} << 16;

inline int64_t parts_for(int64_t elements, int64_t threads = get_num_threads()) {
  return std::max<int64_t>(1, std::min(threads, elements / kElementsAThread));
}

// Where part `part` of the pieces [first, last) begins: at most `element` elements in, at a multiple of kUnit of its
// piece.
struct Place {
  size_t piece;
  int64_t element;
};

inline Place place_of(const std::vector<Piece>& pieces, size_t first, size_t last, int64_t part, int64_t parts) {
  if (part == 0) return Place{first, 0};
  if (part == parts) return Place{last, 0};
  const int64_t begin = pieces[first].at;
  const int64_t total = pieces[last - 1].at + pieces[last - 1].size - begin;
  const int64_t target = begin + total / parts * part;
  const auto after = std::upper_bound(pieces.begin() + static_cast<std::ptrdiff_t>(first),
                                      pieces.begin() + static_cast<std::ptrdiff_t>(last), target,
                                      [](int64_t at, const Piece& piece) { return at < piece.at; });
  const auto piece = static_cast<size_t>(after - pieces.begin()) - 1;
  const int64_t inside = std::min(target - pieces[piece].at, pieces[piece].size);
  return Place{piece, inside / kUnit * kUnit};
}

// Calls f(part, piece, begin, end) for ranges of elements that together make up the pieces [first, last), empty pieces
// included; parts 0 to parts - 1 run side by side. f must not throw.
template <class F>
void for_each_range(const std::vector<Piece>& pieces, size_t first, size_t last, int64_t parts, const F& f) {
  if (first == last) return;
  parallel(parts, [&](int64_t part) {
    Place place = place_of(pieces, first, last, part, parts);
    const Place end = place_of(pieces, first, last, part + 1, parts);
    for (; place.piece < end.piece; place = Place{place.piece + 1, 0}) {
      f(part, pieces[place.piece], place.element, pieces[place.piece].size);
    }
    if (place.piece < last && place.element < end.element) f(part, pieces[place.piece], place.element, end.element);
  });
}

}  // namespace terngrad
