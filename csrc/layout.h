// Which way of computing is faster: many networks side by side in the lanes of vectors, or one
// after the other with vectors along their columns. Every number is the same sum in the same order
// either way, so that the choice may depend on how many networks there are and changes no bit.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace alignjax {

enum class Layout : std::int64_t { kBest, kLanes, kColumns };

// Multiplications of vectors in one step of a pack of networks in lanes, over those of one network
// by columns, whose last vector is padded and whose rows are taken four at a time.
inline double pack_over_network(const std::vector<std::int64_t>& widths, std::int64_t vertex,
                                std::int64_t lanes) {
  double pack = 0, network = 0;
  const auto product = [&](std::int64_t rows, std::int64_t columns, std::int64_t inner) {
    const auto vectors = (columns + lanes - 1) / lanes;
    pack += static_cast<double>(rows) * static_cast<double>(columns) * static_cast<double>(inner);
    network += static_cast<double>((rows + 3) / 4 * 4) * static_cast<double>(vectors) *
               static_cast<double>(inner);
  };
  const auto depth = static_cast<std::int64_t>(widths.size()) - 1;
  const std::int64_t narrow = widths[vertex];
  product(narrow, widths[0], widths[0]);
  if (vertex != 0 && vertex != depth) {
    product(narrow, widths[0], widths[depth]);
    product(widths[depth], narrow, widths[0]);
  }
  // Every layer is met three times: in a product of layers, in a gradient and by the signal.
  for (std::int64_t i = 1; i <= depth; ++i) {
    const std::int64_t above = widths[i], below = widths[i - 1];
    if (i <= vertex) {
      product(narrow, below, above);
      product(narrow, above, below);
    } else {
      product(above, narrow, below);
      product(below, narrow, above);
    }
    product(above, below, narrow);
  }
  return pack / network;
}

// Whether to go by columns. The numbers are measured, at depths 1 to 4 on one AVX-512 machine.
inline bool by_columns(const std::vector<std::int64_t>& widths, std::int64_t vertex,
                       std::size_t item, std::int64_t lanes, std::int64_t networks,
                       std::int64_t threads) {
  const std::int64_t widest = *std::max_element(widths.begin(), widths.end());
  const std::int64_t narrowest = *std::min_element(widths.begin(), widths.end());
  if (widest <= 4) return false;  // registers hold all of a pack
  std::int64_t entries = widths.front() * (widths.front() + widths.back());
  for (std::size_t i = 1; i < widths.size(); ++i) entries += widths[i] * widths[i - 1];
  const bool wide = widest >= (item == 4 ? 32 : 24);
  // Columns would be mostly padding; a single layer has none as narrow.
  const bool thin = widths.size() > 2 && narrowest < (item == 4 ? 8 : 5);
  const bool in_cache = entries <= 40'000;  // those of a whole pack, that is
  if (wide && !(thin && in_cache)) return true;
  // Few networks leave lanes empty.
  const auto turns = [threads](std::int64_t pieces) {
    return static_cast<double>((pieces + threads - 1) / threads);
  };
  const double pack = 0.6 * pack_over_network(widths, vertex, lanes);
  return turns(networks) < pack * turns((networks + lanes - 1) / lanes);
}

}  // namespace alignjax
