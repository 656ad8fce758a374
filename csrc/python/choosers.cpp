// dispatch/'s choosers as Python functions that return plain dicts, and the forced path.
#include "python/choosers.h"

#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "dispatch/select_extended_product.h"
#include "dispatch/select_merge.h"
#include "dispatch/select_thin_product.h"
#include "dispatch/share_launch.h"
#include "ops/saved_latents.h"

namespace py = pybind11;

namespace gralora::python {
namespace {

py::dict select_merge(int64_t m, int64_t n, int64_t row_stride, int64_t column_stride,
                      int64_t element_bytes, uint64_t address, bool wide_factors) {
  const auto selection = gralora::select_merge({.m = m,
                                                .n = n,
                                                .row_stride = row_stride,
                                                .column_stride = column_stride,
                                                .element_bytes = element_bytes,
                                                .address = address,
                                                .wide_factors = wide_factors});
  py::dict choice;
  choice["path"] = std::string(name_of(selection.path));
  choice["transposed"] = selection.transposed;
  choice["reason"] = std::string(selection.reason);
  return choice;
}

py::dict describe(const Choice& choice) {
  py::dict result;
  result["path"] = choice.kernel ? "kernel" : "library";
  result["possible"] = choice.possible;
  result["reason"] = std::string(choice.reason);
  return result;
}

py::dict describe(const ProjectSelection& selection) {
  py::dict result = describe(selection.choice);
  const auto tile = size_of(selection.tile);
  result["tile"] = py::make_tuple(tile.tokens, tile.columns);
  result["splits"] = selection.splits;
  result["kernel"] = is_bulk(selection.tile) ? "sm90" : "sm80";
  return result;
}

py::dict describe(const ExpandSelection& selection) {
  py::dict result = describe(selection.choice);
  const auto tile = size_of(selection.tile);
  result["tile"] = py::make_tuple(tile.tokens, tile.columns);
  return result;
}

py::dict describe(const ExtendedProductSelection& selection) {
  py::dict result = describe(selection.choice);
  const auto tile = size_of(selection.tile);
  result["tile"] = py::make_tuple(tile.tokens, tile.columns);
  result["in_tiles"] = selection.in_tiles;
  return result;
}

py::dict describe(const WeightGradientSelection& selection) {
  py::dict result = describe(selection.choice);
  const auto tile = size_of(selection.tile);
  result["tile"] = py::make_tuple(tile.activations, tile.latents);
  result["splits"] = selection.splits;
  result["kernel"] = is_bulk(selection.tile) ? "sm90" : "sm80";
  return result;
}

/// Two steps, and whether they go in one launch.
template <class Selection>
py::dict describe_pair(const char* name, int64_t T, const Selection& first,
                       const WeightGradientSelection& sums) {
  py::dict result;
  result["together"] = first.choice.kernel && sums.choice.kernel && share_launch(T, first, sums);
  result[name] = describe(first);
  result["sums"] = describe(sums);
  return result;
}

py::dict select_project(int64_t T, int64_t width, int64_t columns, int64_t inner, int64_t outer,
                        std::optional<int64_t> x_row_stride,
                        std::optional<int64_t> factor_block_stride,
                        std::optional<int64_t> factor_pitch, bool factor_transposed,
                        uint64_t address, bool half, bool drops, int processors, int cluster,
                        bool sm90) {
  const int64_t pitch = factor_pitch.value_or(factor_transposed ? width : columns);
  const auto selection =
      gralora::select_project({.T = T,
                               .inner = inner,
                               .outer = outer,
                               .width = width,
                               .columns = columns,
                               .x_row_stride = x_row_stride.value_or(inner * width),
                               .factor_block_stride = factor_block_stride.value_or(
                                   pitch * (factor_transposed ? columns : width)),
                               .factor_width_stride = factor_transposed ? 1 : pitch,
                               .factor_column_stride = factor_transposed ? pitch : 1,
                               .x_address = address,
                               .factor_address = address,
                               .half = half,
                               .aligned_latent = true,
                               .drops = drops,
                               .chip = {processors, cluster, sm90},
                               .forced = gralora::forced_path()});
  return describe(selection);
}

py::dict select_expand(int64_t T, int64_t width, int64_t blocks, bool half, bool aligned, bool bias,
                       bool drops) {
  const auto selection = gralora::select_expand({.T = T,
                                                 .width = width,
                                                 .blocks = blocks,
                                                 .half = half,
                                                 .aligned = aligned,
                                                 .bias = bias,
                                                 .drops = drops});
  return describe(selection);
}

/// (blocks, width, rank) of each.
using GradientShapes = std::vector<std::tuple<int64_t, int64_t, int64_t>>;

/// What is the same for all sums of a call; without gradients yet.
WeightGradientProblem describe_sums(int64_t T, bool half, bool aligned, bool drops,
                                    const Chip& chip) {
  return {.T = T,
          .gradients = {},
          .half = half,
          .aligned = aligned,
          .narrow = true,
          .repeats = false,
          .drops = drops,
          .chip = chip,
          .forced = gralora::forced_path()};
}

void set_gradients(WeightGradientProblem& problem, const GradientShapes& gradients) {
  if (gradients.size() > problem.gradients.size()) {
    throw py::value_error("a call has at most four gradients, got " +
                          std::to_string(gradients.size()));
  }
  for (size_t i = 0; i < gradients.size(); ++i) {
    const auto& [blocks, width, rank] = gradients[i];
    problem.gradients[i] = {blocks, width, rank};
  }
}

py::dict select_extended_product(int64_t T, int64_t depth, int64_t width, int64_t rank,
                                 int64_t blocks, bool half, bool aligned, bool matched,
                                 bool by_depth, bool drops, int64_t terms, int64_t inner,
                                 const std::vector<std::pair<int64_t, int64_t>>& more,
                                 const GradientShapes& gradients, int processors, int cluster,
                                 bool sm90) {
  gralora::ExtendedProductProblem problem{
      .T = T,
      .depth = depth,
      .outputs = {{{.blocks = blocks, .width = width}}},
      .rank = rank,
      .half = half,
      .aligned = aligned,
      .matched = matched,
      .by_depth = by_depth,
      .drops = drops,
      .terms = terms,
      .inner = inner,
      .block_width = inner > 0 && depth % inner == 0 ? depth / inner : 0,
      .chip = {.processors = processors, .cluster = cluster, .sm90 = sm90},
      .forced = gralora::forced_path()};
  for (size_t i = 0; i < more.size(); ++i) {
    problem.outputs.at(i + 1) = {.blocks = more[i].first, .width = more[i].second};
  }
  const auto selection = gralora::select_extended_product(problem);
  py::dict result = describe(selection);
  if (gradients.empty()) return result;
  WeightGradientProblem sums = describe_sums(T, half, aligned, /*drops=*/false, problem.chip);
  set_gradients(sums, gradients);
  const auto along = gralora::select_product_gradients(problem, selection.tile, sums);
  result["gradients"] = describe(along.choice);
  result["gradients"]["counters"] = along.counters;
  result["gradients"]["span"] = along.span;
  return result;
}

py::dict select_weight_gradient(int64_t T, const GradientShapes& gradients, bool half, bool aligned,
                                bool narrow, bool drops, int processors, int cluster, bool sm90) {
  WeightGradientProblem problem =
      describe_sums(T, half, aligned, drops, {processors, cluster, sm90});
  problem.narrow = narrow;
  set_gradients(problem, gradients);
  return describe(gralora::select_weight_gradient(problem));
}

py::dict select_output_gradients(int64_t T, int64_t width, int64_t columns, int64_t inner,
                                 int64_t outer, bool half, bool aligned, int processors,
                                 int cluster, bool sm90) {
  const Chip chip{processors, cluster, sm90};
  const auto project = gralora::select_project({.T = T,
                                                .inner = inner,
                                                .outer = outer,
                                                .width = width,
                                                .columns = columns,
                                                .x_row_stride = inner * width,
                                                .factor_block_stride = width * columns,
                                                .factor_width_stride = 1,
                                                .factor_column_stride = width,
                                                .x_address = 0,
                                                .factor_address = 0,
                                                .half = half,
                                                .aligned_latent = true,
                                                .drops = false,
                                                .chip = chip,
                                                .forced = gralora::forced_path()});
  WeightGradientProblem problem = describe_sums(T, half, aligned, /*drops=*/false, chip);
  problem.gradients[1] = {inner, width, columns};
  return describe_pair("project", T, project, gralora::select_weight_gradient(problem));
}

py::dict select_input_gradients(int64_t T, int64_t width, int64_t rank, int64_t blocks, bool half,
                                bool aligned, bool aligned_factor, bool drops, int processors,
                                int cluster, bool sm90) {
  const auto expand = gralora::select_expand({.T = T,
                                              .width = width,
                                              .blocks = blocks,
                                              .half = half,
                                              .aligned = aligned_factor,
                                              .bias = false,
                                              .drops = drops});
  WeightGradientProblem problem =
      describe_sums(T, half, aligned, drops, {processors, cluster, sm90});
  problem.gradients[0] = {blocks, width, rank};
  return describe_pair("expand", T, expand, gralora::select_weight_gradient(problem));
}

py::dict select_thin_product(int64_t T, int64_t depth, int64_t width, int64_t blocks, bool by_depth,
                             bool half, bool aligned, bool drops, const GradientShapes& gradients,
                             int processors, int cluster) {
  const Chip chip{processors, cluster, /*sm90=*/false};
  const auto selection = gralora::select_thin_product({.T = T,
                                                       .depth = depth,
                                                       .width = width,
                                                       .blocks = blocks,
                                                       .by_depth = by_depth,
                                                       .half = half,
                                                       .aligned = aligned,
                                                       .drops = drops,
                                                       .chip = chip,
                                                       .forced = gralora::forced_path()});
  py::dict result = describe(selection.choice);
  const auto tile = size_of(selection.tile);
  result["tile"] = py::make_tuple(tile.tokens, tile.columns);
  result["splits"] = selection.splits;
  if (gradients.empty()) return result;
  WeightGradientProblem problem = describe_sums(T, half, aligned, /*drops=*/false, chip);
  set_gradients(problem, gradients);
  const auto sums = gralora::select_weight_gradient(problem);
  result["together"] =
      selection.choice.kernel && sums.choice.kernel && share_launch(selection, sums);
  return result;
}

std::optional<std::string> forced_path() {
  const auto path = gralora::forced_path();
  if (path == ForcedPath::kNone) return std::nullopt;
  return std::string(name_of(path));
}

void force_path(const std::optional<std::string>& name) {
  if (!name) return set_forced_path(ForcedPath::kNone);
  const auto path = forced_path_named(*name);
  if (!path) {
    throw py::value_error("path must be \"aten\", \"sm80\", \"sm90\" or None, got \"" + *name +
                          "\"");
  }
  set_forced_path(*path);
}

}  // namespace

void add_choosers(py::module_& m) {
  m.def("select_merge", &select_merge, py::kw_only(), py::arg("m"), py::arg("n"),
        py::arg("row_stride"), py::arg("column_stride") = 1, py::arg("element_bytes") = 2,
        py::arg("address") = 0, py::arg("wide_factors") = false,
        "Which kernel merges an adapter with blocks [m, n] into a weight of these strides (in "
        "elements), and why: {'path': 'vector' | 'scalar' | 'library', 'transposed', 'reason'}.");
  m.def(
      "select_project", &select_project, py::kw_only(), py::arg("T"), py::arg("width"),
      py::arg("columns"), py::arg("inner") = 2, py::arg("outer") = 2,
      py::arg("x_row_stride") = py::none(), py::arg("factor_block_stride") = py::none(),
      py::arg("factor_pitch") = py::none(), py::arg("factor_transposed") = false,
      py::arg("address") = 0, py::arg("half") = true, py::arg("drops") = false,
      py::arg("processors") = 132, py::arg("cluster") = 8, py::arg("sm90") = true,
      "How an input [T, inner*width] meets a factor [inner, width, columns], or its transpose, to "
      "become a latent [outer, T, inner*columns/outer] on a GPU with so many multiprocessors, "
      "where so many blocks may form a cluster and kernels of 9.0a run or not: {'path': 'kernel' | "
      "'library', 'possible': whether the kernel can run, 'reason', 'tile': (tokens, columns), "
      "'splits': of the width, 'kernel': 'sm80' | 'sm90'}. A forced path counts.");
  m.def("select_expand", &select_expand, py::kw_only(), py::arg("T"), py::arg("width"),
        py::arg("blocks") = 2, py::arg("half") = true, py::arg("aligned") = true,
        py::arg("bias") = false, py::arg("drops") = false,
        "How an adapter's term is written into [T, blocks*width]: {'path', 'possible', 'reason', "
        "'tile': (tokens, columns)}.");
  m.def(
      "select_extended_product", &select_extended_product, py::kw_only(), py::arg("T"),
      py::arg("depth"), py::arg("width"), py::arg("rank"), py::arg("blocks") = 2,
      py::arg("half") = true, py::arg("aligned") = true, py::arg("matched") = true,
      py::arg("by_depth") = false, py::arg("drops") = false, py::arg("terms") = 1,
      py::arg("inner") = 0, py::arg("more") = std::vector<std::pair<int64_t, int64_t>>{},
      py::arg("gradients") = GradientShapes{}, py::arg("processors") = 132, py::arg("cluster") = 8,
      py::arg("sm90") = true,
      "Whether the frozen layer's product [T, depth] x [depth, blocks*width] takes the adapter's "
      "term of so many latents per block along, and makes them from `inner` blocks of its input "
      "on the way, where that is not 0; `more` are the (blocks, width) of further layers over the "
      "same input: {'path', 'possible', 'reason', 'tile': (tokens, columns), 'in_tiles': "
      "whether each tile makes them instead}. With `gradients`, each (blocks, width, rank), also "
      "'gradients': whether they are summed among its tiles, were it taken, 'counters': whether "
      "items are drawn then, and 'span': how many tokens are summed at a time, 0 where all are.");
  m.def("select_weight_gradient", &select_weight_gradient, py::kw_only(), py::arg("T"),
        py::arg("gradients"), py::arg("half") = true, py::arg("aligned") = true,
        py::arg("narrow") = true, py::arg("drops") = false, py::arg("processors") = 132,
        py::arg("cluster") = 8, py::arg("sm90") = true,
        "How the factors' gradients, each (blocks, width, rank), are summed over T tokens: "
        "{'path', 'possible', 'reason', 'tile': (activations, latents), 'splits': of the tokens, "
        "'kernel'}.");
  m.def(
      "select_output_gradients", &select_output_gradients, py::kw_only(), py::arg("T"),
      py::arg("width"), py::arg("columns"), py::arg("inner") = 2, py::arg("outer") = 2,
      py::arg("half") = true, py::arg("aligned") = true, py::arg("processors") = 132,
      py::arg("cluster") = 8, py::arg("sm90") = true,
      "How G and dB come from dy [T, inner*width]: {'together': whether in one launch, 'project', "
      "'sums'}, the latter two as the choosers of the single steps give them.");
  m.def("select_input_gradients", &select_input_gradients, py::kw_only(), py::arg("T"),
        py::arg("width"), py::arg("rank"), py::arg("blocks") = 2, py::arg("half") = true,
        py::arg("aligned") = true, py::arg("aligned_factor") = true, py::arg("drops") = false,
        py::arg("processors") = 132, py::arg("cluster") = 8, py::arg("sm90") = true,
        "How the adapter's part of dx [T, blocks*width] and dA come from G: {'together', 'expand', "
        "'sums'}.");
  m.def("select_thin_product", &select_thin_product, py::kw_only(), py::arg("T"), py::arg("depth"),
        py::arg("width"), py::arg("blocks") = 2, py::arg("by_depth") = true, py::arg("half") = true,
        py::arg("aligned") = true, py::arg("drops") = false,
        py::arg("gradients") = GradientShapes{}, py::arg("processors") = 132,
        py::arg("cluster") = 8,
        "Whether the frozen layer's product of few tokens takes the adapter's term along: {'path', "
        "'possible', 'reason', 'tile': (tokens, columns), 'splits': of the depth}. With "
        "`gradients`, each (blocks, width, "
        "rank), also 'together': whether they share its launch.");
  m.def("forced_path", &forced_path, "The forced path, or None.");
  m.def(
      "force_path", &force_path, py::arg("name"),
      "Force the products of all adapters to \"aten\", library calls, or to \"sm80\" or \"sm90\", "
      "gralora's kernels; None leaves the choice to the choosers.");
  m.def("saves_latents", &ops::saves_latents, "Whether forward passes keep their latents.");
  m.def("set_saves_latents", &ops::set_saves_latents, py::arg("saves"),
        "Have forward passes keep their latents for the backward pass, or that project x again.");
}

}  // namespace gralora::python
