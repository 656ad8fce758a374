// kernels/extended_product.h: both tiles, both layouts of weight and factor, with and without a
// bias, ranks beyond a stage and below a product, tails on every axis, more tiles than places.
#include "kernels/extended_product.h"
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
    }
  }
}

}  // namespace

void check_extended_product() {
  if (!runs_sm90()) return;
  int device = 0, processors = 0;
  check_cuda(cudaGetDevice(&device), "cudaGetDevice");
  check_cuda(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device),
             "cudaDeviceGetAttribute");
  check_type<__nv_bfloat16>(processors);
  check_type<__half>(processors);
}

}  // namespace gralora::check
