// kernels/output_gradients.h and kernels/input_gradients.h: in one launch the same bits as the two
// kernels give one after the other, which the other checks compare with exact sums.
#include "kernels/input_gradients.h"
#include "kernels/output_gradients.h"
#include "mask.h"

namespace gralora::check {
namespace {

struct TogetherCase {
  int T, inner, outer, s, width;
};

/// Whether the host's copies hold the same bits, and nothing that was left unwritten.
template <class T>
int64_t count_different(Array<T>& actual, Array<T>& expected) {
  actual.fetch();
  expected.fetch();
  int64_t different = 0;
  for (size_t e = 0; e < expected.host.size(); ++e) {
    different += !(float(actual.host[e]) == float(expected.host[e]));
  }
  return different;
}

/// Results of both ways.
template <class T>
struct Results {
  Array<T> dense, gradient;

  Results(int64_t dense_elements, int64_t gradient_elements)
      : dense(dense_elements), gradient(gradient_elements) {
    dense.poison();
    gradient.poison();
  }
};

std::string describe(const TogetherCase& c) {
  return " T " + std::to_string(c.T) + " blocks " + std::to_string(c.inner) + "x" +
         std::to_string(c.outer) + " width " + std::to_string(c.width) + " s " +
         std::to_string(c.s);
}

/// G and dB of `inner` blocks of dy, each `width` wide.
template <class T>
void check_output(const TogetherCase& c, ProjectTile project_tile, int project_splits) {
  const int columns = c.outer * c.s, rank = c.outer * c.s;
  const int64_t pitch = c.inner * c.s, row = c.inner * c.width;
  Array<T> dy(c.T * row), B(int64_t{c.inner} * columns * c.width);
  Array<T> H(int64_t{c.inner} * c.T * padded(rank));
  dy.fill(1, 1);
  B.fill(1, 1);
  H.fill(1, 1);
  const auto make_results = [&] {
    return Results<T>(c.outer * c.T * pitch, int64_t{c.inner} * rank * c.width);
  };
  Results<T> one_by_one = make_results(), together = make_results();
  ProjectParams project{};
  project.x = dy.device();
  project.factor = B.device();
  project.T = c.T;
  project.inner = c.inner;
  project.width = c.width;
  project.outer = c.outer;
  project.s = c.s;
  project.x_row_stride = row;
  project.factor_block_stride = int64_t{columns} * c.width;
  project.factor_pitch = c.width;
  project.latent_plane = c.T * pitch;
  project.latent_pitch = pitch;
  project.scaling = 0.5f;
  project.type = Traits<T>::kType;
  project.width_is_contiguous = true;
  project.tile = project_tile;
  project.splits = project_splits;
  WeightGradientParams sums{};
  GradientSum& sum = sums.sums[sums.count++];
  sum.activation = dy.device();
  sum.latent = H.device();
  sum.activation_block_stride = c.width;
  sum.activation_pitch = row;
  sum.latent_pitch = padded(rank);
  sum.latent_block_stride = c.T * sum.latent_pitch;
  sum.blocks = c.inner;
  sum.width = c.width;
  sum.rank = rank;
  sum.rank_first = true;
  sum.out_type = Traits<T>::kType;
  sums.T = c.T;
  sums.tile = GradientTile::k64x64;
  sums.splits = 1;
  sums.type = Traits<T>::kType;

  project.latent = one_by_one.dense.device();
  sum.out = one_by_one.gradient.device();
  check_cuda(launch_project(project, nullptr), "project");
  check_cuda(launch_weight_gradient(sums, nullptr), "weight_gradient");
  project.latent = together.dense.device();
  sum.out = together.gradient.device();
  check_cuda(launch_output_gradients(project, sums, nullptr), "output_gradients");
  const auto tile = size_of(project_tile);
  report(std::string(Traits<T>::kName) + " output_gradients " + std::to_string(tile.tokens) + "x" +
             std::to_string(tile.columns) + " splits " + std::to_string(project_splits) +
             describe(c),
         count_different(together.dense, one_by_one.dense) +
             count_different(together.gradient, one_by_one.gradient));
}

/// dx of `outer` blocks, each `width` wide, and dA.
template <class T>
void check_input(const TogetherCase& c, bool drops) {
  const int rank = c.inner * c.s;
  const int64_t row = c.outer * c.width;
  Array<T> x(c.T * row), A(int64_t{c.outer} * c.width * rank), G(c.outer * c.T * int64_t{rank});
  x.fill(1, 1);
  A.fill(1, 1);
  G.fill(1, 1);
  const Mask mask(0.3);
  const auto make_results = [&] {
    return Results<T>(c.T * row, int64_t{c.outer} * c.width * rank);
  };
  Results<T> one_by_one = make_results(), together = make_results();
  ExpandParams expand{};
  expand.grid.latent = G.device();
  expand.grid.factor = A.device();
  expand.grid.latent_plane = int64_t{c.T} * rank;
  expand.grid.latent_pitch = expand.grid.rank = expand.grid.factor_pitch = rank;
  expand.grid.factor_block_stride = int64_t{c.width} * rank;
  expand.grid.rank_is_contiguous = true;
  expand.T = c.T;
  expand.blocks = c.outer;
  expand.width = c.width;
  expand.tile = ExpandTile::k64x64;
  expand.type = Traits<T>::kType;
  WeightGradientParams sums{};
  GradientSum& sum = sums.sums[sums.count++];
  sum.activation = x.device();
  sum.latent = G.device();
  sum.activation_block_stride = c.width;
  sum.activation_pitch = row;
  sum.latent_pitch = rank;
  sum.latent_block_stride = int64_t{c.T} * rank;
  sum.blocks = c.outer;
  sum.width = c.width;
  sum.rank = rank;
  sum.drops = drops;
  sum.out_type = Traits<T>::kType;
  sums.T = c.T;
  sums.tile = GradientTile::k64x64;
  sums.splits = 1;
  sums.type = Traits<T>::kType;
  if (drops) expand.dropout = sums.dropout = mask.source();

  expand.out = one_by_one.dense.device();
  sum.out = one_by_one.gradient.device();
  check_cuda(launch_expand(expand, nullptr), "expand");
  check_cuda(launch_weight_gradient(sums, nullptr), "weight_gradient");
  expand.out = together.dense.device();
  sum.out = together.gradient.device();
  check_cuda(launch_input_gradients(expand, sums, nullptr), "input_gradients");
  report(
      std::string(Traits<T>::kName) + " input_gradients" + describe(c) + (drops ? " dropped" : ""),
      count_different(together.dense, one_by_one.dense) +
          count_different(together.gradient, one_by_one.gradient));
}

template <class T>
void check_type() {
  for (const TogetherCase& c : {TogetherCase{1, 2, 2, 8, 64}, TogetherCase{130, 3, 4, 8, 72},
                                TogetherCase{300, 1, 5, 24, 136}}) {
    for (const int splits : {1, 4}) {
      for (const auto tile : {ProjectTile::k16x32, ProjectTile::k64x32, ProjectTile::k128x64}) {
        check_output<T>(c, tile, splits);
      }
    }
    for (const bool drops : {false, true}) check_input<T>(c, drops);
  }
}

}  // namespace

void check_together() {
  check_type<__nv_bfloat16>();
  check_type<__half>();
}

}  // namespace gralora::check
