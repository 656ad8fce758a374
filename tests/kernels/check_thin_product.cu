// kernels/thin_product.h: both layouts of the weight, whole and split walks, tails on every axis,
// the grid part and the plain part, a bias; and beside gradients.
#include "expand_parts.h"
#include "kernels/thin_product.h"

namespace gralora::check {
namespace {

struct ThinCase {
  int T, depth, blocks, width, rank, r0;
  bool has_bias = false, is_ahead = false;
  bool is_unusual = false;  // the other axis of each factor is contiguous than in a layer
};

/// One gradient beside it, [blocks, width, rank] of its own operands.
template <class T>
struct SideSum {
  static constexpr int kBlocks = 2, kWidth = 72, kRank = 24;
  int tokens;
  Array<T> activation, latent;
  Array<float> out;

  explicit SideSum(int tokens)
      : tokens(tokens),
        activation(tokens * kBlocks * kWidth),
        latent(kBlocks * tokens * kRank),
        out(kBlocks * kWidth * kRank) {
    activation.fill(kBlocks * kWidth, kBlocks * kWidth);
    latent.fill(kRank, kRank);
    out.poison();
  }
  WeightGradientParams params() const {
    WeightGradientParams p{};
    p.sums[p.count++] = {.activation = activation.device(),
                         .latent = latent.device(),
                         .out = out.device(),
                         .activation_block_stride = kWidth,
                         .activation_pitch = kBlocks * kWidth,
                         .latent_block_stride = int64_t{tokens} * kRank,
                         .latent_pitch = kRank,
                         .blocks = kBlocks,
                         .width = kWidth,
                         .rank = kRank,
                         .rank_first = false,
                         .drops = false,
                         .out_type = ElementType::kFloat32};
    p.T = tokens;
    p.tile = GradientTile::k64x64;
    p.splits = 1;
    p.type = Traits<T>::kType;
    return p;
  }
  int64_t count_wrong() {
    out.fetch();
    int64_t wrong = 0;
    for (int b = 0; b < kBlocks; ++b) {
      for (int w = 0; w < kWidth; ++w) {
        for (int q = 0; q < kRank; ++q) {
          Exact exact;
          for (int t = 0; t < tokens; ++t) {
            exact.add(activation[t * kBlocks * kWidth + b * kWidth + w] *
                      latent[(b * tokens + t) * kRank + q]);
          }
          wrong += !is_close(out[(b * kWidth + w) * kRank + q], exact, 1e-6);
        }
      }
    }
    return wrong;
  }
};

template <class T>
void check_case(const ThinCase& c, ThinTile tile, int splits, bool has_sums) {
  const bool depth_is_contiguous = tile != ThinTile::k16x128;
  const int N = c.blocks * c.width;
  const int64_t row_pitch = padded(c.depth) + 8;
  const int64_t weight_pitch = padded(depth_is_contiguous ? c.depth : N) + 8;
  Array<T> rows(c.T * row_pitch), weight((depth_is_contiguous ? N : c.depth) * weight_pitch);
  Array<T> bias(N), out(static_cast<int64_t>(c.T) * N);
  rows.fill(c.depth, row_pitch);
  weight.fill(depth_is_contiguous ? c.depth : N, weight_pitch);
  bias.fill(N, N);
  out.poison();
  // In a layer the grid's factor lies across the weight's depth, the plain part's along it.
  PartArrays<T> grid(c.rank, depth_is_contiguous == c.is_unusual, c.blocks, c.T, c.width);
  PartArrays<T> plain(c.r0, depth_is_contiguous != c.is_unusual, 1, c.T, N);
  ThinProductParams p{};
  if (c.rank > 0) p.term.grid = grid.part(c.T, c.width);
  if (c.r0 > 0) p.term.plain = plain.part(c.T, N);
  if (c.has_bias) p.term.bias = bias.device();
  p.term.out = out.device();
  p.term.T = c.T;
  p.term.blocks = c.blocks;
  p.term.width = c.width;
  p.term.factors_are_ready = c.is_ahead;
  p.term.type = Traits<T>::kType;
  p.rows = rows.device();
  p.weight = weight.device();
  p.row_stride = row_pitch;
  p.weight_stride = weight_pitch;
  p.depth = c.depth;
  p.tile = tile;
  p.splits = splits;
  SideSum<T> side(c.T);
  check_cuda(has_sums ? launch_thin_product_beside_sums(p, side.params(), nullptr)
                      : launch_thin_product(p, nullptr),
             "thin_product");
  out.fetch();
  int64_t wrong = c.T == 0 ? out.count_written() : 0;
  for (int t = 0; t < c.T; ++t) {
    for (int o = 0; o < N; ++o) {
      Exact exact;
      for (int d = 0; d < c.depth; ++d) {
        exact.add(rows[t * row_pitch + d] *
                  weight[depth_is_contiguous ? o * weight_pitch + d : d * weight_pitch + o]);
      }
      grid.add_to(exact, o / c.width, c.T, t, c.width, o % c.width);
      plain.add_to(exact, 0, c.T, t, N, o);
      if (c.has_bias) exact.add(bias[o]);
      wrong += !is_close(out[static_cast<int64_t>(t) * N + o], exact, Traits<T>::kHalfPlace);
    }
  }
  if (has_sums) wrong += side.count_wrong();
  report(std::string(Traits<T>::kName) + " thin_product 16x" +
             std::to_string(size_of(tile).columns) + " T " + std::to_string(c.T) + " depth " +
             std::to_string(c.depth) + " blocks " + std::to_string(c.blocks) + " width " +
             std::to_string(c.width) + " rank " + std::to_string(c.rank) + " r0 " +
             std::to_string(c.r0) + " splits " + std::to_string(splits) +
             (c.has_bias ? " bias" : "") + (c.is_unusual ? " unusual factors" : "") +
             (has_sums ? " beside sums" : ""),
         wrong);
}

template <class T>
void check_type() {
  for (const ThinTile tile : {ThinTile::k16x16, ThinTile::k16x64, ThinTile::k16x128}) {
    for (const int splits : {1, 2, 8}) {
      for (const ThinCase& c :
           {ThinCase{0, 64, 2, 64, 8, 0}, ThinCase{1, 64, 2, 64, 8, 0, true},
            ThinCase{16, 136, 3, 72, 24, 0}, ThinCase{7, 1288, 2, 136, 40, 16, true, true},
            // More steps than the ring has stages; a plain part alone; more tokens than a tile has.
            ThinCase{16, 2568, 1, 200, 104, 0}, ThinCase{5, 8, 4, 48, 8, 0, false, true},
            ThinCase{3, 200, 1, 136, 0, 24, true}, ThinCase{35, 264, 2, 40, 16, 8},
            ThinCase{9, 133, 2, 72, 21, 13, true, false, true},
            ThinCase{16, 1285, 1, 136, 43, 0, false, true, true}}) {
        check_case<T>(c, tile, splits, false);
      }
      if (tile != ThinTile::k16x128) continue;
      check_case<T>({13, 520, 2, 136, 24, 0}, tile, splits, true);
      check_case<T>({0, 520, 2, 136, 24, 0}, tile, splits, true);
    }
  }
}

}  // namespace

void check_thin_product() {
  check_type<__nv_bfloat16>();
  check_type<__half>();
}

}  // namespace gralora::check
