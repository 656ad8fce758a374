// kernels/extended_product.h: both tiles, both layouts of weight and factor, with and without a
// bias, ranks beyond a stage and below a product, tails on every axis, more tiles than places; and
// with the projection among the tiles.
#include <algorithm>
#include <cmath>

#include "kernels/extended_product.h"
#include "kernels/product_order.h"
#include "support.h"

namespace gralora::check {
namespace {

struct ProductCase {
  int T, depth, blocks, width, rank;
};

template <class T>
void check_case(const ProductCase& c, ProductTile tile, bool depth_is_contiguous, bool has_bias,
                int processors) {
  const int columns = c.blocks * c.width;
  const int64_t row_pitch = c.depth + 8, latent_pitch = padded(c.rank);
  const int64_t weight_width = depth_is_contiguous ? c.depth : columns;
  const int64_t weight_rows = depth_is_contiguous ? columns : c.depth;
  const int64_t weight_pitch = weight_width + 8;
  const int64_t factor_width = depth_is_contiguous ? c.width : c.rank;
  const int64_t factor_rows = depth_is_contiguous ? c.rank : c.width;
  const int64_t factor_pitch = padded(factor_width) + 8;
  Array<T> rows(c.T * row_pitch), weight(weight_rows * weight_pitch);
  Array<T> latent(c.blocks * c.T * latent_pitch);
  Array<T> factor(c.blocks * factor_rows * factor_pitch);
  Array<T> bias(columns), out(static_cast<int64_t>(c.T) * columns);
  rows.fill(c.depth, row_pitch);
  weight.fill(weight_width, weight_pitch);
  latent.fill(c.rank, latent_pitch);
  factor.fill(factor_width, factor_pitch);
  bias.fill(columns, columns);
  out.poison();
  ExtendedProductParams p{};
  p.rows = rows.device();
  p.weight = weight.device();
  p.latent = latent.device();
  p.factor = factor.device();
  p.bias = has_bias ? bias.device() : nullptr;
  p.out = out.device();
  p.T = c.T;
  p.depth = c.depth;
  p.blocks = c.blocks;
  p.width = c.width;
  p.rank = c.rank;
  p.row_stride = row_pitch;
  p.weight_stride = weight_pitch;
  p.latent_plane = c.T * latent_pitch;
  p.latent_pitch = latent_pitch;
  p.factor_block_stride = factor_rows * factor_pitch;
  p.factor_pitch = factor_pitch;
  p.depth_is_contiguous = depth_is_contiguous;
  p.type = Traits<T>::kType;
  p.tile = tile;
  p.processors = processors;
  check_cuda(launch_extended_product(p, nullptr), "extended_product");
  out.fetch();
  int64_t wrong = c.T == 0 ? out.count_written() : 0;
  // A sample of every tile: the whole is a long sum on the host.
  for (int t = 0; t < c.T; t += t % 64 == 62 ? 2 : 1 + c.T / 100) {
    for (int column = t % 3; column < columns; column += 3) {
      const int block = column / c.width, w = column % c.width;
      Exact exact;
      for (int d = 0; d < c.depth; ++d) {
        const int64_t at =
            depth_is_contiguous ? column * weight_pitch + d : d * weight_pitch + column;
        exact.add(rows[t * row_pitch + d] * weight[at]);
      }
      for (int q = 0; q < c.rank; ++q) {
        const int64_t at = block * p.factor_block_stride +
                           (depth_is_contiguous ? q * factor_pitch + w : w * factor_pitch + q);
        exact.add(latent[(static_cast<int64_t>(block) * c.T + t) * latent_pitch + q] * factor[at]);
      }
      if (has_bias) exact.add(bias[column]);
      wrong +=
          !is_close(out[static_cast<int64_t>(t) * columns + column], exact, Traits<T>::kHalfPlace);
    }
  }
  const auto size = size_of(tile);
  report(std::string(Traits<T>::kName) + " extended_product " + std::to_string(size.tokens) + "x" +
             std::to_string(size.columns) + " T " + std::to_string(c.T) + " depth " +
             std::to_string(c.depth) + " blocks " + std::to_string(c.blocks) + "x" +
             std::to_string(c.width) + " rank " + std::to_string(c.rank) +
             (depth_is_contiguous ? " depth contiguous" : "") + (has_bias ? " bias" : ""),
         wrong);
}

/// A product that makes its latent on the way: both against their sums, the product's from the
/// latents as they were rounded. A NaN in one block of the input is in that block's latents alone.
struct MadeCase {
  int T, inner, width_in, blocks, width, s;
};

template <class T>
void check_made(const MadeCase& c, ProductTile tile, bool depth_is_contiguous, int processors) {
  const int depth = c.inner * c.width_in, rank = c.inner * c.s, columns = c.blocks * c.width;
  const int latent_columns = c.blocks * c.s;
  const int64_t row_pitch = depth + 8, latent_pitch = rank + 8;
  const int64_t weight_width = depth_is_contiguous ? depth : columns;
  const int64_t weight_rows = depth_is_contiguous ? columns : depth;
  const int64_t factor_width = depth_is_contiguous ? c.width : rank;
  const int64_t factor_rows = depth_is_contiguous ? rank : c.width;
  const int64_t made_width = depth_is_contiguous ? latent_columns : c.width_in;
  const int64_t made_rows = depth_is_contiguous ? c.width_in : latent_columns;
  const int64_t made_pitch = padded(made_width) + 8;
  Array<T> rows(c.T * row_pitch), weight(weight_rows * weight_width);
  Array<T> latent(c.blocks * c.T * latent_pitch);
  Array<T> factor(c.blocks * factor_rows * factor_width);
  Array<T> made(c.inner * made_rows * made_pitch), out(static_cast<int64_t>(c.T) * columns);
  Array<T> bias(columns);
  bias.fill(columns, columns);
  rows.fill(depth, row_pitch);
  if (c.inner > 1) {
    // A block of one token; the boxes of the block before may reach over it.
    rows.host[(c.inner - 1) * c.width_in] = T(NAN);
    rows.send();
  }
  weight.fill(weight_width, weight_width);
  latent.poison();
  factor.fill(factor_width, factor_width);
  made.fill(made_width, made_pitch);
  out.poison();
  ExtendedProductParams p{};
  p.rows = rows.device();
  p.weight = weight.device();
  p.latent = latent.device();
  p.factor = factor.device();
  p.bias = bias.device();
  p.out = out.device();
  p.T = c.T;
  p.depth = depth;
  p.blocks = c.blocks;
  p.width = c.width;
  p.rank = rank;
  p.row_stride = row_pitch;
  p.weight_stride = weight_width;
  p.latent_plane = c.T * latent_pitch;
  p.latent_pitch = latent_pitch;
  p.factor_block_stride = factor_rows * factor_width;
  p.factor_pitch = factor_width;
  p.depth_is_contiguous = depth_is_contiguous;
  p.type = Traits<T>::kType;
  p.tile = tile;
  p.processors = processors;
  p.projection = {.factor = made.device(),
                  .latent = latent.device(),
                  .inner = c.inner,
                  .block_stride = made_rows * made_pitch,
                  .pitch = made_pitch,
                  .scaling = 0.5f};
  Array<T> counters(2 * count_product_counters(c.T));
  p.counters = reinterpret_cast<int32_t*>(counters.poison().device());
  check_cuda(launch_extended_product(p, nullptr), "extended_product");
  latent.fetch();
  out.fetch();
  int64_t wrong = 0;
  const auto matches = [](double actual, const Exact& exact) {
    return std::isnan(exact.value) ? std::isnan(actual)
                                   : is_close(actual, exact, Traits<T>::kHalfPlace);
  };
  const auto latent_at = [&](int block, int t, int q) {
    return (static_cast<int64_t>(block) * c.T + t) * latent_pitch + q;
  };
  for (int t = 0; t < c.T; t += t % 64 == 62 ? 2 : 1 + c.T / 100) {
    for (int column = 0; column < latent_columns; ++column) {
      const int block = column / c.s;
      for (int i = 0; i < c.inner; ++i) {
        Exact exact;
        for (int d = 0; d < c.width_in; ++d) {
          const int64_t at =
              i * p.projection.block_stride +
              (depth_is_contiguous ? d * made_pitch + column : column * made_pitch + d);
          exact.add(0.5 * rows[t * row_pitch + i * c.width_in + d] * made[at]);
        }
        wrong += !matches(latent[latent_at(block, t, i * c.s + column % c.s)], exact);
      }
    }
    for (int column = t % 5; column < columns; column += 5) {
      const int block = column / c.width, w = column % c.width;
      Exact exact;
      for (int d = 0; d < depth; ++d) {
        const int64_t at =
            depth_is_contiguous ? column * weight_width + d : d * weight_width + column;
        exact.add(rows[t * row_pitch + d] * weight[at]);
      }
      for (int q = 0; q < rank; ++q) {
        const int64_t at = block * p.factor_block_stride +
                           (depth_is_contiguous ? q * factor_width + w : w * factor_width + q);
        exact.add(latent[latent_at(block, t, q)] * factor[at]);
      }
      exact.add(bias[column]);
      wrong += !matches(out[static_cast<int64_t>(t) * columns + column], exact);
    }
  }
  const auto size = size_of(tile);
  report(std::string(Traits<T>::kName) + " extended_product with projection " +
             std::to_string(size.tokens) + "x" + std::to_string(size.columns) + " T " +
             std::to_string(c.T) + " " + std::to_string(c.inner) + "x" +
             std::to_string(c.width_in) + " to " + std::to_string(c.blocks) + "x" +
             std::to_string(c.width) + " s " + std::to_string(c.s) +
             (depth_is_contiguous ? " depth contiguous" : ""),
         wrong);
}

/// Every item once, and none before what it waits for.
void check_order() {
  int64_t wrong = 0, orders = 0;
  for (int rows = 1; rows <= 40; rows += rows < 10 ? 1 : 7) {
    for (const int columns : {1, 2, 3, 16, 57}) {
      for (const int group : {1, 3, 8}) {
        for (const int inner : {0, 1, 2, 5}) {
          const ProductOrder order = order_product(rows, columns, group, inner);
          std::vector<int> projected(order.projections), multiplied(order.tiles);
          for (int item = 0; item < order.items(); ++item) {
            const ProductItem at = order[item];
            ++(at.projects ? projected : multiplied).at(at.index);
            if (at.projects) continue;
            // The rows of its group have all their projections before it.
            const int first = at.index / (group * columns) * group;
            for (int q = first * inner; q < std::min(first + group, rows) * inner; ++q) {
              wrong += projected[q] != 1;
            }
          }
          for (const int times : projected) wrong += times != 1;
          for (const int times : multiplied) wrong += times != 1;
          ++orders;
        }
      }
    }
  }
  report("order of a product's items, " + std::to_string(orders) + " shapes", wrong);
}

template <class T>
void check_type(int processors) {
  for (const auto tile : {ProductTile::k128x256, ProductTile::k128x128}) {
    for (const bool depth_is_contiguous : {false, true}) {
      const auto check = [&](const ProductCase& c, bool has_bias, int places) {
        check_case<T>(c, tile, depth_is_contiguous, has_bias, places);
      };
      check({0, 64, 1, 64, 8}, false, processors);
      check({1, 64, 1, 64, 8}, true, processors);
      check({129, 200, 2, 328, 16}, false, processors);
      check({300, 72, 4, 144, 24}, true, processors);
      check({257, 136, 3, 48, 40}, false, processors);
      check({100, 8, 2, 8, 3}, true, processors);
      // Several tiles for each place, and more steps than the ring has stages.
      check({700, 520, 2, 264, 136}, true, 4);
      check({513, 448, 1, 512, 64}, false, 2);
      // More rows of tiles than are walked together.
      check({2400, 64, 1, 136, 8}, false, 6);
      const auto check_with_projection = [&](const MadeCase& c, int places) {
        check_made<T>(c, tile, depth_is_contiguous, places);
      };
      check_with_projection({1, 1, 64, 1, 64, 8}, processors);
      check_with_projection({300, 2, 72, 2, 136, 8}, processors);
      check_with_projection({513, 4, 136, 4, 72, 16}, 4);
      // Longer than the ring, in steps by one and by two.
      check_with_projection({300, 2, 840, 2, 136, 8}, 4);
      check_with_projection({130, 1, 712, 4, 64, 32}, 4);
      check_with_projection({257, 3, 200, 2, 264, 40}, 2);
      check_with_projection({700, 2, 64, 4, 64, 32}, 4);
      check_with_projection({2400, 1, 64, 2, 136, 24}, 4);
      // More places than tiles.
      check_with_projection({2400, 2, 72, 1, 64, 8}, 16);
      if (tile == ProductTile::k128x256) {
        check_with_projection({300, 2, 88, 8, 64, 32}, 4);
        check_with_projection({260, 8, 8, 4, 48, 40}, 4);
      }
    }
  }
}

}  // namespace

void check_extended_product() {
  check_order();
  if (!runs_sm90()) return;
  int device = 0, processors = 0;
  check_cuda(cudaGetDevice(&device), "cudaGetDevice");
  check_cuda(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device),
             "cudaDeviceGetAttribute");
  check_type<__nv_bfloat16>(processors);
  check_type<__half>(processors);
}

}  // namespace gralora::check
