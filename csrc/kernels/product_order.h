// In which order the clusters of an extended product do its items: tiles of the result, and among
// them the projections that the tiles' own steps over the latent wait for. Plain numbers, so that
// host code can check it.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define GRALORA_EVERYWHERE __host__ __device__
#else
#define GRALORA_EVERYWHERE
#endif

namespace gralora {

/// An item is a projection or a tile, each numbered by rows first: the projections of a group of
/// rows lie together, and so do its tiles.
struct ProductItem {
  bool projects;
  int32_t index;
};

/// Bursts of projections with runs of tiles between them, then the tiles that are left:
///
///   burst 0 | run | burst 1 | run | ... | last burst | all other tiles
///
/// A burst has the projections of one group of rows and stands before that group's first tile. So
/// every item only waits for items before it, and whoever draws items in this order and does one
/// after the other can always go on: of all items that are not done the first waits for nothing.
struct ProductOrder {
  int32_t projections, tiles;  // in all
  int32_t burst, run;

  GRALORA_EVERYWHERE int32_t items() const { return projections + tiles; }

  GRALORA_EVERYWHERE ProductItem operator[](int32_t item) const {
    if (projections == 0) return {false, item};
    const int32_t bursts = (projections + burst - 1) / burst;
    const int32_t period = burst + run;
    int32_t turn = item / period;
    if (turn > bursts - 1) turn = bursts - 1;
    const int32_t inside = item - turn * period;
    const int32_t left = projections - turn * burst;
    const int32_t here = left < burst ? left : burst;
    if (inside < here) return {true, turn * burst + inside};
    return {false, turn * run + inside - here};
  }
};

/// How projections are cut: an item has so many rows of tiles, a part of the group, and one of so
/// many slices of what is to be done there. No slices: there are no projections.
struct ProjectionCut {
  int32_t rows, slices;
};

/// `rows` of tiles, walked `group` at a time over `columns`. The run is what the clusters need to be
/// busy while one burst's projections are done, and no longer than a group's tiles.
constexpr ProductOrder order_product(int32_t rows, int32_t columns, int32_t group,
                                     ProjectionCut cut, int32_t clusters) {
  if (cut.slices == 0) return {0, rows * columns, 0, 0};
  const int32_t group_rows = rows < group ? rows : group;
  const int32_t burst = (group_rows + cut.rows - 1) / cut.rows * cut.slices;
  int32_t run = clusters - burst;
  if (run < 1) run = 1;
  if (run > group_rows * columns) run = group_rows * columns;
  return {(rows + cut.rows - 1) / cut.rows * cut.slices, rows * columns, burst, run};
}

}  // namespace gralora

#undef GRALORA_EVERYWHERE
