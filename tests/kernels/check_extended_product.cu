// kernels/extended_product.h: both tiles, both layouts of weight and factor, with and without a
// bias, ranks beyond a stage and below a product, tails on every axis, more tiles than places,
// several products in one sum; and with the projection among the tiles.
#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "kernels/extended_product.h"
#include "kernels/product_order.h"
#include "support.h"

namespace gralora::check {
namespace {

struct TermCase {
  int inner, width;  // blocks of the rows, and their width
};

/// With planes the latent is made on the way, and the rank is cut by all blocks of all rows.
struct ProductCase {
  int T;
  std::vector<TermCase> terms;
  int blocks, width, rank;
  bool has_bias = true;
  int planes = 0;
};

/// A term's operands, rows further apart than they are long.
template <class T>
struct TermArrays {
  int inner, width, depth;
  int64_t row_pitch, weight_pitch, made_pitch, made_block;
  Array<T> rows, weight, made;

  TermArrays(const TermCase& term, int T_, int columns, int latent_columns,
             bool depth_is_contiguous)
      : inner(term.inner),
        width(term.width),
        depth(term.inner * term.width),
        row_pitch(depth + 8),
        weight_pitch((depth_is_contiguous ? depth : columns) + 8),
        made_pitch(padded(depth_is_contiguous ? latent_columns : width) + 8),
        made_block((depth_is_contiguous ? width : latent_columns) * made_pitch),
        rows(T_ * row_pitch),
        weight((depth_is_contiguous ? columns : depth) * weight_pitch),
        made(inner * made_block) {
    rows.fill(depth, row_pitch);
    weight.fill(weight_pitch - 8, weight_pitch);
    made.fill(depth_is_contiguous ? latent_columns : width, made_pitch);
  }

  double weight_at(int d, int column, bool depth_is_contiguous) const {
    return weight[depth_is_contiguous ? column * weight_pitch + d : d * weight_pitch + column];
  }
  double made_at(int block, int d, int column, bool depth_is_contiguous) const {
    return made[block * made_block +
                (depth_is_contiguous ? d * made_pitch + column : column * made_pitch + d)];
  }
};

/// A product, and the latents that it makes: both against their sums, the product's from the
/// latents as they were rounded. A NaN in one block of the last rows is in that block's latents
/// alone.
template <class T>
void check_case(const ProductCase& c, ProductTile tile, bool depth_is_contiguous, int processors) {
  const int columns = c.blocks * c.width, planes = std::max(c.planes, c.blocks);
  int inner = 0;
  for (const TermCase& term : c.terms) inner += term.inner;
  const int s = c.rank / inner, latent_columns = c.planes * s;
  const int64_t latent_pitch = padded(c.rank) + (c.planes > 0 ? 8 : 0);
  const int64_t factor_width = depth_is_contiguous ? c.width : c.rank;
  const int64_t factor_rows = depth_is_contiguous ? c.rank : c.width;
  const int64_t factor_pitch = padded(factor_width) + 8;
  std::vector<std::unique_ptr<TermArrays<T>>> terms;
  ExtendedProductParams p{};
  for (const TermCase& shape : c.terms) {
    terms.push_back(
        std::make_unique<TermArrays<T>>(shape, c.T, columns, latent_columns, depth_is_contiguous));
    TermArrays<T>& term = *terms.back();
    if (c.planes > 0 && terms.size() == c.terms.size() && term.inner > 1) {
      // A block of one token; the boxes of the block before may reach over it.
      term.rows.host[(term.inner - 1) * term.width] = T(NAN);
      term.rows.send();
    }
    p.terms[p.term_count++] = {.rows = term.rows.device(),
                               .weight = term.weight.device(),
                               .row_stride = term.row_pitch,
                               .weight_stride = term.weight_pitch,
                               .depth = term.depth,
                               .inner = term.inner,
                               .factor = c.planes > 0 ? term.made.device() : nullptr,
                               .factor_block_stride = term.made_block,
                               .factor_pitch = term.made_pitch};
  }
  Array<T> latent(int64_t{planes} * c.T * latent_pitch);
  Array<T> factor(c.blocks * factor_rows * factor_pitch);
  Array<T> bias(columns), out(static_cast<int64_t>(c.T) * columns);
  Array<T> counters(2 * count_product_counters(c.T));
  if (c.planes > 0) {
    latent.poison();
  } else {
    latent.fill(c.rank, latent_pitch);
  }
  factor.fill(factor_width, factor_pitch);
  bias.fill(columns, columns);
  out.poison();
  p.latent = latent.device();
  p.factor = factor.device();
  p.bias = c.has_bias ? bias.device() : nullptr;
  p.out = out.device();
  p.T = c.T;
  p.blocks = c.blocks;
  p.width = c.width;
  p.rank = c.rank;
  p.latent_plane = c.T * latent_pitch;
  p.latent_pitch = latent_pitch;
  p.factor_block_stride = factor_rows * factor_pitch;
  p.factor_pitch = factor_pitch;
  p.depth_is_contiguous = depth_is_contiguous;
  p.type = Traits<T>::kType;
  p.tile = tile;
  p.processors = processors;
  if (c.planes > 0) {
    p.projection = {.latent = latent.device(), .planes = c.planes, .scaling = 0.5f};
    p.counters = reinterpret_cast<int32_t*>(counters.poison().device());
  }
  check_cuda(launch_extended_product(p, nullptr), "extended_product");
  latent.fetch();
  out.fetch();
  const auto matches = [](double actual, const Exact& exact) {
    return std::isnan(exact.value) ? std::isnan(actual)
                                   : is_close(actual, exact, Traits<T>::kHalfPlace);
  };
  const auto latent_at = [&](int plane, int t, int q) {
    return (static_cast<int64_t>(plane) * c.T + t) * latent_pitch + q;
  };
  int64_t wrong = c.T == 0 ? out.count_written() : 0;
  // A sample of every tile: the whole is a long sum on the host.
  for (int t = 0; t < c.T; t += t % 64 == 62 ? 2 : 1 + c.T / 100) {
    for (int column = 0; column < latent_columns; ++column) {
      int before = 0;
      for (const auto& term : terms) {
        for (int i = 0; i < term->inner; ++i) {
          Exact exact;
          for (int d = 0; d < term->width; ++d) {
            exact.add(0.5 * term->rows[t * term->row_pitch + i * term->width + d] *
                      term->made_at(i, d, column, depth_is_contiguous));
          }
          const int64_t at = latent_at(column / s, t, (before + i) * s + column % s);
          wrong += !matches(latent[at], exact);
        }
        before += term->inner;
      }
    }
    for (int column = t % 3; column < columns; column += 3) {
      const int block = column / c.width, w = column % c.width;
      Exact exact;
      for (const auto& term : terms) {
        for (int d = 0; d < term->depth; ++d) {
          exact.add(term->rows[t * term->row_pitch + d] *
                    term->weight_at(d, column, depth_is_contiguous));
        }
      }
      for (int q = 0; q < c.rank; ++q) {
        const int64_t at = block * p.factor_block_stride +
                           (depth_is_contiguous ? q * factor_pitch + w : w * factor_pitch + q);
        exact.add(latent[latent_at(block, t, q)] * factor[at]);
      }
      if (c.has_bias) exact.add(bias[column]);
      wrong += !matches(out[static_cast<int64_t>(t) * columns + column], exact);
    }
  }
  const auto size = size_of(tile);
  std::string name = std::string(Traits<T>::kName) + " extended_product " +
                     std::to_string(size.tokens) + "x" + std::to_string(size.columns) + " T " +
                     std::to_string(c.T) + " from";
  for (const TermCase& term : c.terms) {
    name += " " + std::to_string(term.inner) + "x" + std::to_string(term.width);
  }
  name += " to " + std::to_string(c.blocks) + "x" + std::to_string(c.width) + " rank " +
          std::to_string(c.rank);
  if (c.planes > 0) name += " made in " + std::to_string(c.planes) + " planes";
  report(name + (depth_is_contiguous ? " depth contiguous" : "") + (c.has_bias ? " bias" : ""),
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
      const auto check = [&](const ProductCase& c, int places) {
        check_case<T>(c, tile, depth_is_contiguous, places);
      };
      check({0, {{1, 64}}, 1, 64, 8, false}, processors);
      check({1, {{1, 64}}, 1, 64, 8}, processors);
      check({129, {{1, 200}}, 2, 328, 16, false}, processors);
      check({300, {{1, 72}}, 4, 144, 24}, processors);
      check({257, {{1, 136}}, 3, 48, 40, false}, processors);
      check({100, {{1, 8}}, 2, 8, 3}, processors);
      // Several tiles for each place, and more steps than the ring has stages.
      check({700, {{1, 520}}, 2, 264, 136}, 4);
      check({513, {{1, 448}}, 1, 512, 64, false}, 2);
      // More rows of tiles than are walked together.
      check({2400, {{1, 64}}, 1, 136, 8, false}, 6);
      // Several products in one sum.
      check({130, {{1, 200}, {1, 72}}, 2, 136, 40}, processors);
      check({520, {{1, 264}, {1, 8}, {1, 136}}, 1, 264, 72, false}, 4);
      // With the latents made on the way.
      check({1, {{1, 64}}, 1, 64, 8, true, 1}, processors);
      check({300, {{2, 72}}, 2, 136, 16, true, 2}, processors);
      check({513, {{4, 136}}, 4, 72, 64, true, 4}, 4);
      // Longer than the ring, in steps by one and by two.
      check({300, {{2, 840}}, 2, 136, 16, true, 2}, 4);
      check({130, {{1, 712}}, 4, 64, 32, true, 4}, 4);
      check({257, {{3, 200}}, 2, 264, 120, true, 2}, 2);
      check({700, {{2, 64}}, 4, 64, 64, true, 4}, 4);
      check({2400, {{1, 64}}, 2, 136, 24, true, 2}, 4);
      // More places than tiles.
      check({2400, {{2, 72}}, 1, 64, 16, true, 1}, 16);
      // Latents of further layers, and of several layers' rows.
      check({300, {{2, 136}}, 2, 136, 16, true, 5}, 4);
      check({260, {{2, 200}, {1, 72}, {3, 8}}, 2, 72, 48, true, 2}, 4);
      check({513, {{1, 72}, {2, 328}}, 1, 264, 72, false, 1}, 2);
      if (tile == ProductTile::k128x256) {
        check({300, {{2, 88}}, 8, 64, 64, true, 8}, 4);
        check({260, {{8, 8}}, 4, 48, 320, true, 4}, 4);
        check({300, {{2, 136}}, 1, 136, 80, true, 6}, 4);
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
