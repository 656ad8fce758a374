// kernels/project.h: every tile, both layouts of the factor, with and without dropout, tails on
// every axis, the width whole and split among the CTAs of a cluster, no tokens.
#include "kernels/project.h"
#include "mask.h"

namespace gralora::check {
namespace {

struct ProjectCase {
  int T, inner, width, outer, s;
};

template <class T>
void check_case(const ProjectCase& c, ProjectTile tile, int splits, bool width_is_contiguous,
                bool drops) {
  const int columns = c.outer * c.s;
  const int64_t pitch = padded(c.inner * c.s);
  const int64_t x_pitch = c.inner * c.width + 8;
  const int64_t factor_rows = width_is_contiguous ? columns : c.width;
  const int64_t factor_width = width_is_contiguous ? c.width : columns;
  const int64_t factor_pitch = padded(factor_width);
  Array<T> x(c.T * x_pitch), factor(c.inner * factor_rows * factor_pitch);
  Array<T> latent(c.outer * c.T * pitch);
  x.fill(c.inner * c.width, x_pitch);
  factor.fill(factor_width, factor_pitch);
  latent.poison();
  const Mask mask(0.3);
  const double scaling = drops ? 0.5 * mask.rule.scale : 0.5;
  ProjectParams p{};
  p.x = x.device();
  p.factor = factor.device();
  p.latent = latent.device();
  p.T = c.T;
  p.inner = c.inner;
  p.width = c.width;
  p.outer = c.outer;
  p.s = c.s;
  p.x_row_stride = x_pitch;
  p.factor_block_stride = factor_rows * factor_pitch;
  p.factor_pitch = factor_pitch;
  p.latent_plane = c.T * pitch;
  p.latent_pitch = pitch;
  p.scaling = static_cast<float>(scaling);
  if (drops) p.dropout = mask.source();
  p.type = Traits<T>::kType;
  p.width_is_contiguous = width_is_contiguous;
  p.tile = tile;
  p.splits = splits;
  check_cuda(launch_project(p, nullptr), "project");
  latent.fetch();
  int64_t wrong = c.T == 0 ? latent.count_written() : 0;
  for (int q = 0; q < c.outer; ++q) {
    for (int t = 0; t < c.T; ++t) {
      for (int e = 0; e < c.inner * c.s; ++e) {
        const int block = e / c.s, column = q * c.s + e % c.s;
        Exact exact;
        for (int w = 0; w < c.width; ++w) {
          const int64_t at =
              block * p.factor_block_stride +
              (width_is_contiguous ? column * factor_pitch + w : w * factor_pitch + column);
          const int64_t element = int64_t{t} * c.inner * c.width + block * c.width + w;
          if (drops && !mask.keeps(element)) continue;
          exact.add(scaling * x[t * x_pitch + block * c.width + w] * factor[at]);
        }
        const double actual = latent[q * p.latent_plane + t * pitch + e];
        wrong += !is_close(actual, exact, Traits<T>::kHalfPlace);
      }
    }
  }
  const auto size = size_of(tile);
  report(std::string(Traits<T>::kName) + " project " + std::to_string(size.tokens) + "x" +
             std::to_string(size.columns) + " T " + std::to_string(c.T) + " blocks " +
             std::to_string(c.inner) + "x" + std::to_string(c.outer) + " width " +
             std::to_string(c.width) + " s " + std::to_string(c.s) + " splits " +
             std::to_string(splits) + (width_is_contiguous ? " width contiguous" : "") +
             (drops ? " dropped" : ""),
         wrong);
}

template <class T>
void check_bulk_tile(ProjectTile tile) {
  for (const bool width_is_contiguous : {false, true}) {
    for (const ProjectCase& c :
         {ProjectCase{0, 2, 64, 2, 8}, ProjectCase{1, 2, 64, 2, 8}, ProjectCase{65, 2, 136, 2, 8},
          ProjectCase{130, 3, 72, 8, 3}, ProjectCase{17, 1, 200, 5, 24},
          ProjectCase{33, 2, 8, 1, 4}, ProjectCase{67, 2, 288, 4, 8},
          // Longer walks than the ring, more than one slice of columns.
          ProjectCase{300, 2, 1288, 2, 8}, ProjectCase{1100, 2, 72, 2, 8},
          ProjectCase{130, 1, 1024, 4, 72}}) {
      check_case<T>(c, tile, 1, width_is_contiguous, false);
    }
    if (tile == ProjectTile::kBulk128x256) continue;
    for (const ProjectCase& c : {ProjectCase{67, 4, 48, 2, 8}, ProjectCase{130, 3, 72, 8, 3},
                                 ProjectCase{5, 2, 1096, 2, 8}, ProjectCase{300, 2, 1288, 2, 8},
                                 ProjectCase{0, 2, 64, 2, 8}, ProjectCase{1, 2, 64, 2, 8},
                                 ProjectCase{130, 1, 1024, 4, 24}}) {
      check_case<T>(c, tile, 1, width_is_contiguous, true);
    }
  }
}

template <class T>
void check_tile(ProjectTile tile, int splits) {
  for (const bool width_is_contiguous : {false, true}) {
    for (const ProjectCase& c :
         {ProjectCase{0, 2, 64, 2, 8}, ProjectCase{1, 2, 64, 2, 8}, ProjectCase{65, 2, 136, 2, 8},
          ProjectCase{130, 3, 72, 8, 3}, ProjectCase{17, 1, 200, 5, 24},
          ProjectCase{33, 2, 8, 1, 4}, ProjectCase{67, 2, 288, 4, 8}}) {
      check_case<T>(c, tile, splits, width_is_contiguous, false);
    }
    check_case<T>({67, 4, 48, 2, 8}, tile, splits, width_is_contiguous, true);
    check_case<T>({130, 3, 72, 8, 3}, tile, splits, width_is_contiguous, true);
    check_case<T>({5, 2, 1096, 2, 8}, tile, splits, width_is_contiguous, true);
  }
}

template <class T>
void check_type() {
  for (const auto tile : {ProjectTile::k16x32, ProjectTile::k64x32, ProjectTile::k128x64}) {
    for (const int splits : {1, 2, 8}) check_tile<T>(tile, splits);
  }
  if (!runs_sm90()) return;
  for (const auto tile : {ProjectTile::kBulk64x32, ProjectTile::kBulk64x64,
                          ProjectTile::kBulk128x128, ProjectTile::kBulk128x256}) {
    check_bulk_tile<T>(tile);
  }
}

}  // namespace

void check_project() {
  check_type<__nv_bfloat16>();
  check_type<__half>();
}

}  // namespace gralora::check
