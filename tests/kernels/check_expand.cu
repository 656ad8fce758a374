// kernels/expand.h: both tiles, grid part, plain part and both, either axis of the factors
// contiguous, the term alone, dropped, or with what is added to it; no tokens.
#include "expand_parts.h"
#include "mask.h"

namespace gralora::check {
namespace {

/// `rank` and `r0` are the ranks of the grid part and of the plain part, 0 where it is absent.
struct ExpandCase {
  int T, blocks, width, rank, r0;
};

/// What joins the term, and how it is computed.
struct ExpandWay {
  ExpandTile tile;
  bool rank_is_contiguous, accumulate, has_bias, drops;
};

template <class T>
void check_case(const ExpandCase& c, const ExpandWay& way) {
  const auto pitch = static_cast<int64_t>(c.blocks) * c.width;
  const int N = static_cast<int>(pitch);
  Array<T> out(c.T * pitch), bias(pitch);
  bias.fill(pitch, pitch);
  const Mask mask(0.3);
  if (way.accumulate && c.T > 0) {
    out.fill(pitch, pitch);
  } else {
    out.poison();
  }
  const std::vector<T> before = out.host;
  PartArrays<T> grid(c.rank, way.rank_is_contiguous, c.blocks, c.T, c.width);
  PartArrays<T> plain(c.r0, !way.rank_is_contiguous, 1, c.T, N);
  ExpandParams p{};
  if (c.rank > 0) p.grid = grid.part(c.T, c.width);
  if (c.r0 > 0) p.plain = plain.part(c.T, N);
  p.out = out.device();
  p.T = c.T;
  p.blocks = c.blocks;
  p.width = c.width;
  p.accumulate = way.accumulate;
  p.tile = way.tile;
  if (way.has_bias) p.bias = bias.device();
  if (way.drops) p.dropout = mask.source();
  p.type = Traits<T>::kType;
  check_cuda(launch_expand(p, nullptr), "expand");
  out.fetch();
  int64_t wrong = c.T == 0 ? out.count_written() : 0;
  for (int t = 0; t < c.T; ++t) {
    for (int o = 0; o < N; ++o) {
      Exact exact;
      grid.add_to(exact, o / c.width, c.T, t, c.width, o % c.width);
      plain.add_to(exact, 0, c.T, t, N, o);
      if (way.drops) {
        const double scale = mask.keeps(t * pitch + o) ? mask.rule.scale : 0;
        exact = {exact.value * scale, exact.size * scale};
      }
      if (way.has_bias) exact.add(bias[o]);
      if (way.accumulate) exact.add(float(before[t * pitch + o]));
      wrong += !is_close(out[t * pitch + o], exact, Traits<T>::kHalfPlace);
    }
  }
  report(std::string(Traits<T>::kName) + " expand T " + std::to_string(c.T) + " blocks " +
             std::to_string(c.blocks) + " width " + std::to_string(c.width) + " rank " +
             std::to_string(c.rank) + " r0 " + std::to_string(c.r0) +
             (way.tile == ExpandTile::k64x64 ? " small" : " large") +
             (way.rank_is_contiguous ? " rank contiguous" : "") +
             (way.accumulate ? " accumulated" : "") + (way.has_bias ? " bias" : "") +
             (way.drops ? " dropped" : ""),
         wrong);
}

template <class T>
void check_type() {
  for (const ExpandTile tile : {ExpandTile::k64x64, ExpandTile::k128x128}) {
    for (const bool rank_is_contiguous : {false, true}) {
      for (const ExpandWay& way : {ExpandWay{tile, rank_is_contiguous, false, false, false},
                                   ExpandWay{tile, rank_is_contiguous, true, false, false},
                                   ExpandWay{tile, rank_is_contiguous, false, true, false},
                                   ExpandWay{tile, rank_is_contiguous, false, false, true}}) {
        for (const ExpandCase& c : {ExpandCase{0, 2, 64, 8, 8}, ExpandCase{1, 2, 64, 8, 0},
                                    ExpandCase{65, 3, 72, 24, 0}, ExpandCase{130, 2, 136, 40, 16},
                                    ExpandCase{20, 1, 200, 104, 5}, ExpandCase{67, 1, 136, 0, 16},
                                    ExpandCase{67, 4, 48, 8, 0}, ExpandCase{67, 2, 288, 16, 8}}) {
          check_case<T>(c, way);
        }
      }
    }
  }
}

}  // namespace

void check_expand() {
  check_type<__nv_bfloat16>();
  check_type<__half>();
}

}  // namespace gralora::check
