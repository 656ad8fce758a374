// kernels/product_order.h: the order of an extended product's items, which is the host's work
// alone.
#include <algorithm>
#include <vector>

#include "kernels/product_order.h"
#include "support.h"

namespace gralora::check {
namespace {

// Every item once, and none before what it waits for; late gradients right before the last tiles of
// their span's rows, or after all.
int64_t count_misplaced(const ProductOrder& order, int rows, int columns, int group, int inner,
                        int span_rows) {
  int64_t wrong = 0;
  std::vector<int> done[3] = {
      std::vector<int>(order.tiles), std::vector<int>(order.projections),
      std::vector<int>(order.gradients.late * order.gradients.spans + order.gradients.early)};
  const std::vector<int>& projected = done[static_cast<int>(ProductWork::kProjection)];
  const std::vector<int>& multiplied = done[static_cast<int>(ProductWork::kTile)];
  const std::vector<int>& summed = done[static_cast<int>(ProductWork::kGradient)];
  for (int item = 0; item < order.items(); ++item) {
    const ProductItem at = order[item];
    ++done[static_cast<int>(at.work)].at(at.index);
    int first = 0, last = 0;
    if (at.work == ProductWork::kTile) {
      // The rows of its group have all their projections before it.
      first = at.index / (group * columns) * group;
      last = std::min(first + group, rows);
    } else if (at.work == ProductWork::kGradient && order.gradients.late > 0) {
      const int late = order.gradients.late, span = at.index / late;
      if (span < order.gradients.spans) {
        const bool is_last = span + 1 == order.gradients.spans;
        first = span * span_rows;
        last = is_last ? rows : first + span_rows;
        if (span > 0) wrong += summed[at.index - late] != 1;
        const int next = inner > 0 ? (last - 1) / group * group * columns : order.tiles;
        if (next > 0) wrong += multiplied[next - 1] != 1;
        if (next < order.tiles) wrong += multiplied[next] != 0;
      }
    }
    for (int q = first * inner; q < last * inner; ++q) wrong += projected[q] != 1;
  }
  for (const std::vector<int>& items : done) {
    for (const int times : items) wrong += times != 1;
  }
  return wrong;
}

}  // namespace

void check_product_order() {
  int64_t wrong = 0, orders = 0;
  for (int rows = 1; rows <= 40; rows += rows < 10 ? 1 : 7) {
    for (const int columns : {1, 2, 3, 16, 57}) {
      for (const int group : {1, 3, 8}) {
        for (const int inner : {0, 1, 2, 5}) {
          for (const int late : {0, 1, 9}) {
            for (const int early : {0, 1, 7}) {
              for (const int span_groups : {1, 2, 40}) {
                // Without projections there is one span.
                const int span_rows = inner > 0 ? span_groups * group : rows;
                const int spans = std::max(rows / span_rows, 1);
                const ProductOrder order =
                    order_product(rows, columns, group, inner, {late, early, spans}, span_rows);
                wrong += count_misplaced(order, rows, columns, group, inner, span_rows);
                ++orders;
              }
            }
          }
        }
      }
    }
  }
  report("order of a product's items, " + std::to_string(orders) + " shapes", wrong);
}

}  // namespace gralora::check
