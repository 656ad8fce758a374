// In which order the clusters of an extended product do its items: tiles of the result, among them
// the projections that the tiles' own steps over the latent wait for, and gradients of factors.
// Plain numbers, so that host code can check it.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define GRALORA_EVERYWHERE __host__ __device__
#else
#define GRALORA_EVERYWHERE
#endif

namespace gralora {

enum class ProductWork : int32_t { kTile, kProjection, kGradient };

/// Projections and tiles are numbered by rows first: the projections of a group of rows lie
/// together, and so do its tiles.
struct ProductItem {
  ProductWork work;
  int32_t index;
};

/// Gradients of factors: those that come first, and those that come late and may need latents. The
/// late ones may be summed span by span of the tokens.
struct ProductGradients {
  int32_t late = 0, early = 0;  // items; late: of a span
  int32_t spans = 1;
};

/// Before a group's tiles come the projections of its rows:
///
///   projections of group 0 | its tiles | projections of group 1 | its tiles | ...
///
/// Late gradients come right after the last projections of their span; without projections they are
/// the last. So every item only waits for items before it, and whoever draws items in this order
/// and does one after the other can always go on: of all items that are not done the first waits
/// for nothing. Tiles need what was projected at the end of their walk alone, so nothing need come
/// earlier.
struct ProductOrder {
  int32_t projections, tiles;  // in all
  ProductGradients gradients;
  int32_t late_at = 0;  // so many projections and tiles come before the last span's gradients
  int32_t group_projections = 0, group_tiles = 1;  // of a whole group
  int32_t span_items = 0;                          // projections and tiles, but of the last span

  GRALORA_EVERYWHERE int32_t items() const {
    return projections + tiles + gradients.late * gradients.spans + gradients.early;
  }

  GRALORA_EVERYWHERE ProductItem operator[](int32_t item) const {
    const int32_t late = gradients.late, last = gradients.spans - 1;
    if (item < gradients.early) return {ProductWork::kGradient, late * gradients.spans + item};
    item -= gradients.early;
    const int32_t whole = last > 0 ? item / (span_items + late) : 0;
    const int32_t span = whole < last ? whole : last;
    item -= span * late;  // of the spans before
    const int32_t at = span < last ? (span + 1) * span_items - group_tiles : late_at;
    if (item >= at) {
      if (item < at + late) return {ProductWork::kGradient, span * late + item - at};
      item -= late;
    }
    if (projections == 0) return {ProductWork::kTile, item};
    const int32_t group = item / (group_projections + group_tiles);
    const int32_t inside = item - group * (group_projections + group_tiles);
    const int32_t left = projections - group * group_projections;
    const int32_t here = left < group_projections ? left : group_projections;
    if (inside < here) return {ProductWork::kProjection, group * group_projections + inside};
    return {ProductWork::kTile, group * group_tiles + inside - here};
  }
};

/// `rows` of tiles, walked `group` at a time over `columns`, each row with so many projections. A
/// span of the gradients has so many rows, whole groups; the last one what is left over as well.
constexpr ProductOrder order_product(int32_t rows, int32_t columns, int32_t group,
                                     int32_t projections, ProductGradients gradients,
                                     int32_t span_rows) {
  const int32_t tiles_before =
      projections > 0 ? (rows - 1) / group * group * columns : rows * columns;
  return {.projections = rows * projections,
          .tiles = rows * columns,
          .gradients = gradients,
          .late_at = rows * projections + tiles_before,
          .group_projections = group * projections,
          .group_tiles = group * columns,
          .span_items = span_rows * (projections + columns)};
}

}  // namespace gralora

#undef GRALORA_EVERYWHERE
