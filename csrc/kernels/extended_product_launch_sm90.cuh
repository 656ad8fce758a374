// The extended product's launch for operands of one dtype: tensor maps, the order of its items, and
// as many clusters as fit at once. Instantiated by extended_product_sm90_bf16.cu,
// projecting_product_sm90_bf16.cu and their twins for float16, called by extended_product_sm90.cu.
#pragma once

#include <algorithm>
#include <type_traits>

#include "kernels/extended_product.h"
#include "kernels/extended_product_sm90.cuh"
#include "kernels/launch.cuh"
#include "kernels/tensor_map.h"

namespace gralora::extended_product {

struct CounterParams {
  int32_t* counters;
  int64_t count;
};

/// Counters at zero. A kernel, since the product that follows may be set up while it runs.
struct ClearCounters {
  using Params = CounterParams;
  static constexpr int kThreads = 256, kSharedBytes = 0, kBlocksPerProcessor = 1;
  __device__ static void run(const Params& p, uint32_t, unsigned char*) {
    ptx::wait_for_earlier_kernels();
    ptx::release_next_kernel();
    for (int64_t c = threadIdx.x; c < p.count; c += kThreads) p.counters[c] = 0;
  }
};

template <class Tile>
int64_t count_row_tiles(const ExtendedProductParams& p) {
  constexpr int kClusterRows = Tile::kRows * Tile::kCluster;
  return (p.T + kClusterRows - 1) / kClusterRows;
}

/// The maps of a product's operands and result.
template <class Tile, bool kDepthIsContiguous>
class Maps {
 public:
  Maps(Params& params, const ExtendedProductParams& p) : params_(params), p_(p) {}

  cudaError_t make() {
    int32_t blocks = 0;
    for (int t = 0; t < p_.term_count; ++t) {
      const ProductTerm& term = p_.terms[t];
      map(params_.terms[t].rows, term.rows, term.depth, p_.T, term.row_stride, 1, 0, Tile::kRows);
    }
    for (int o = 0; o < p_.output_count; ++o) {
      make_output(params_.outputs[o], p_.outputs[o]);
      blocks += p_.outputs[o].blocks;
    }
    for (int w = 0; w < std::max(p_.term_count, p_.output_count); ++w) {
      make_weight(params_.weights[w], p_.weights[w], p_.terms[p_.term_count == 1 ? 0 : w],
                  p_.outputs[p_.output_count == 1 ? 0 : w]);
    }
    map(params_.latent, p_.latent, p_.rank, p_.T, p_.latent_pitch, blocks, p_.latent_plane,
        Tile::kRows);
    return status_;
  }

  /// Those of the gradients as well.
  cudaError_t make_gradients() {
    for (int g = 0; g < params_.gradient_count; ++g) {
      const GradientSum& sum = params_.gradients[g].sum;
      map(params_.gradients[g].activation, sum.activation, sum.width, p_.T, sum.activation_pitch,
          sum.blocks, sum.activation_block_stride, Tile::kDepth);
      map(params_.gradients[g].latent, sum.latent, sum.rank, p_.T, sum.latent_pitch, sum.blocks,
          sum.latent_block_stride, Tile::kDepth / Tile::kCluster);
    }
    return status_;
  }

  /// Those of the projection as well.
  cudaError_t make_projection(int32_t columns) {
    for (int t = 0; t < p_.term_count; ++t) {
      make_projection_term(params_.projection.terms[t], p_.terms[t], columns);
    }
    return status_;
  }

 private:
  static constexpr int kShare = Tile::kColumns / Tile::kCluster;

  void make_output(Output& output, const ProductOutput& from) {
    if constexpr (kDepthIsContiguous) {
      map(output.factor, from.factor, from.width, p_.rank, from.factor_pitch, from.blocks,
          from.factor_block_stride, Tile::kDepth);
    } else {
      map(output.factor, from.factor, p_.rank, from.width, from.factor_pitch, from.blocks,
          from.factor_block_stride, kShare);
    }
    map(output.out, from.out, from.width, p_.T, int64_t{from.blocks} * from.width, from.blocks,
        from.width, kBoxRows);
  }

  void make_weight(CUtensorMap& weight, const ProductWeight& from, const ProductTerm& term,
                   const ProductOutput& output) {
    if constexpr (kDepthIsContiguous) {
      // A block's columns of the weight: rows of it where the depth is contiguous.
      map(weight, from.data, term.depth, output.width, from.stride, output.blocks,
          from.stride * output.width, kShare);
    } else {
      map(weight, from.data, output.width, term.depth, from.stride, output.blocks, output.width,
          Tile::kDepth);
    }
  }

  void make_projection_term(ProjectionTerm& term, const ProductTerm& from, int32_t columns) {
    const int32_t depth = from.depth / from.inner;
    if constexpr (Tile::kProjects) {
      map(term.factor, from.factor, columns, depth, from.factor_pitch, from.inner,
          from.factor_block_stride, Tile::kDepth / Tile::kCluster, kNarrowBoxInner);
      return;
    }
    map(term.rows, from.rows, depth, p_.T, from.row_stride, from.inner, depth, Tile::kRows);
    if constexpr (kDepthIsContiguous) {
      map(term.factor, from.factor, columns, depth, from.factor_pitch, from.inner,
          from.factor_block_stride, Tile::kDepth / Tile::kCluster);
    } else {
      map(term.factor, from.factor, depth, columns, from.factor_pitch, from.inner,
          from.factor_block_stride, parts_of(columns) * 64 / Tile::kCluster);
    }
  }

  /// Unless one has failed before.
  void map(CUtensorMap& to, const void* data, int64_t inner, int64_t middle, int64_t middle_stride,
           int64_t outer, int64_t outer_stride, int box, int box_inner = kBoxInner) {
    if (status_ != cudaSuccess) return;
    status_ = make_tensor_map(to, {.data = data,
                                   .type = p_.type,
                                   .inner = inner,
                                   .middle = middle,
                                   .outer = outer,
                                   .middle_stride = middle_stride,
                                   .outer_stride = outer_stride,
                                   .box_middle = box,
                                   .box_inner = box_inner});
  }

  Params& params_;
  const ExtendedProductParams& p_;
  cudaError_t status_ = cudaSuccess;
};

/// Tokens whose tiles are walked together. Measured on an H100: fewer, where their projections come
/// right before (tiles that project themselves have been tried with as many alone); yet the weight
/// is read once for each group, and a wide one counts.
inline int choose_group_tokens(const ExtendedProductParams& p, int64_t columns) {
  constexpr int kManyColumns = 32;
  return p.projection.latent != nullptr && columns < kManyColumns ? 1024 : 2048;
}

inline int32_t divide_up(int32_t a, int32_t b) { return (a + b - 1) / b; }

/// The walk along all terms and the columns of all results; the number of these columns' tiles.
template <class Tile>
int64_t describe_product(Params& params, const ExtendedProductParams& p) {
  params.rank = p.rank;
  params.dropout = p.dropout;
  params.term_count = p.term_count;
  for (int t = 0; t < p.term_count; ++t) {
    params.terms[t].steps = divide_up(p.terms[t].depth, Tile::kDepth);
    params.base_steps += params.terms[t].steps;
    if (t < p.dropped_terms) params.dropped_steps += params.terms[t].steps;
  }
  params.output_count = p.output_count;
  int64_t columns = 0;
  int32_t blocks = 0;
  for (int o = 0; o < p.output_count; ++o) {
    Output& output = params.outputs[o];
    output.bias = p.outputs[o].bias;
    output.width = p.outputs[o].width;
    output.column_tiles = divide_up(output.width, Tile::kColumns);
    output.first_column = static_cast<int32_t>(columns);
    output.first_block = blocks;
    columns += int64_t{output.column_tiles} * p.outputs[o].blocks;
    blocks += p.outputs[o].blocks;
    params.row_width = p.outputs[o].blocks * p.outputs[o].width;
  }
  return columns;
}

/// What the projection's items need; `rank` is cut by the blocks of all terms.
template <class Tile>
cudaError_t describe_projection(Projection& projection, const ExtendedProductParams& p) {
  const ProductProjection& asked = p.projection;
  for (int t = 0; t < p.term_count; ++t) {
    const ProductTerm& term = p.terms[t];
    if (term.factor == nullptr || term.inner < 1 || term.depth % (term.inner * kChunk) != 0) {
      return cudaErrorInvalidValue;
    }
    projection.terms[t].inner = term.inner;
    projection.terms[t].steps = divide_up(term.depth / term.inner, Tile::kDepth);
    projection.inner += term.inner;
  }
  if (p.rank % (projection.inner * kChunk) != 0) return cudaErrorInvalidValue;
  projection.latent = asked.latent;
  projection.T = p.T;
  projection.plane = p.latent_plane;
  projection.pitch = p.latent_pitch;
  projection.scaling = asked.scaling;
  projection.s = p.rank / projection.inner;
  for (int o = 0; o < p.output_count; ++o) {
    projection.columns += p.outputs[o].blocks * projection.s;
  }
  if constexpr (Tile::kProjects) {
    const bool is_possible = p.term_count == 1 && projection.s == kTileLatents &&
                             p.rank <= kMostTileLatents &&
                             p.terms[0].depth % (projection.inner * Tile::kDepth) == 0;
    return is_possible ? cudaSuccess : cudaErrorInvalidValue;
  }
  const bool is_possible = p.counters != nullptr && projection.columns <= Tile::kColumns;
  return is_possible ? cudaSuccess : cudaErrorInvalidValue;
}

/// What the gradients' items need, and their number; false where that is not possible.
///
/// Where no latents are made on the way, those that are ready come first, since a walk over the
/// tokens may last longer than a tile, and those that wait come last. On the way all come late,
/// those that are ready before those that wait, and the next tiles begin while they end.
template <class Tile>
bool describe_gradients(ProductGradients& items, Params& params, const ExtendedProductParams& p) {
  const bool on_the_way = p.projection.latent != nullptr;
  const bool is_made = on_the_way || params.latent_is_ahead;
  enum class Place { kLateAndReady, kWaits, kEarly };
  const auto place_of = [&](const GradientSum& sum) {
    if (is_made && sum.latent == p.latent) return Place::kWaits;
    return on_the_way ? Place::kLateAndReady : Place::kEarly;
  };
  int32_t count = 0;
  for (const Place place : {Place::kLateAndReady, Place::kWaits, Place::kEarly}) {
    for (int g = 0; g < p.gradient_count; ++g) {
      const GradientSum& sum = p.gradients[g];
      if (place_of(sum) != place) continue;
      if (sum.rank < 1 || sum.rank > Tile::kColumns || sum.width < 1 || sum.drops) return false;
      const int64_t before = int64_t{items.late} + items.early;
      const int64_t here = count_gradient_items(sum);
      if ((before + here) * items.spans > kMostItems) return false;
      Gradient& gradient = params.gradients[count++];
      gradient.sum = sum;
      gradient.first_item = static_cast<int32_t>(before);
      gradient.waits = place == Place::kWaits;
      (place == Place::kEarly ? items.early : items.late) += static_cast<int32_t>(here);
    }
  }
  params.gradient_count = count;
  params.token_steps = static_cast<int32_t>((p.T + Tile::kDepth - 1) / Tile::kDepth);
  return true;
}

/// Who counts where, as count_product_counters() says, and where spans leave their sums.
template <class Tile>
void place_counters(Params& params, const ExtendedProductParams& p) {
  const int32_t spans = params.order.gradients.spans;
  params.next_item = p.counters;
  params.span_projected = p.counters + 1;
  params.projected = params.span_projected + spans;
  int32_t* ended = params.projected + params.row_tiles * Tile::kCluster;
  float* partials = p.gradient_partials;
  for (int g = 0; g < params.gradient_count && spans > 1; ++g) {
    Gradient& gradient = params.gradients[g];
    gradient.ended = ended;
    gradient.partials = partials;
    const int64_t boxes = count_gradient_boxes(gradient.sum);
    ended += boxes * kStoreWarps;
    partials += boxes * Tile::kRows * kBoxColumns;
  }
}

template <class T, class Tile, bool kDepthIsContiguous>
cudaError_t launch_tile(const ExtendedProductParams& p, cudaStream_t stream) {
  static_assert(Tile::kRows * Tile::kCluster == kProductRows);
  if (std::min(p.term_count, p.output_count) != 1 ||
      std::max(p.term_count, p.output_count) > kMaxProducts) {
    return cudaErrorInvalidValue;
  }
  const bool drops = p.dropout.rng_state != nullptr;
  const bool can_drop = !kDepthIsContiguous && p.output_count == 1 && p.rank > 0 &&
                        p.dropped_terms < p.term_count && p.projection.latent == nullptr;
  if (drops && !can_drop) return cudaErrorInvalidValue;
  Params params{};
  Maps<Tile, kDepthIsContiguous> maps(params, p);
  cudaError_t status = maps.make();
  if (status != cudaSuccess) return status;
  const int64_t columns = describe_product<Tile>(params, p);
  if (p.projection.latent != nullptr) {
    status = describe_projection<Tile>(params.projection, p);
    if (status == cudaSuccess) status = maps.make_projection(params.projection.columns);
    if (status != cudaSuccess) return status;
  }
  params.row_tiles = static_cast<int32_t>(count_row_tiles<Tile>(p));
  params.columns = static_cast<int32_t>(columns);
  params.group = choose_group_tokens(p, columns) / (Tile::kRows * Tile::kCluster);
  const int32_t projections = Tile::kProjects ? 0 : params.projection.inner;
  params.latent_is_ahead = p.latent_is_ahead && p.counters == nullptr;
  ProductGradients gradients{.spans = count_gradient_spans(p)};
  params.span_rows = std::max(params.row_tiles, 1);
  if (gradients.spans > 1) {
    // Of whole groups of rows, whose projections come right before.
    const int64_t group_tokens = int64_t{params.group} * kProductRows;
    const bool is_possible =
        projections > 0 && p.gradient_partials != nullptr && p.gradient_span % group_tokens == 0;
    if (!is_possible) return cudaErrorInvalidValue;
    params.span_rows = static_cast<int32_t>(p.gradient_span / kProductRows);
  }
  if (p.gradient_count > 0) {
    if (kDepthIsContiguous || !describe_gradients<Tile>(gradients, params, p)) {
      return cudaErrorInvalidValue;
    }
    status = maps.make_gradients();
    if (status != cudaSuccess) return status;
  }
  if (params.row_tiles * (columns + projections) > kMostItems || p.processors < Tile::kCluster) {
    return cudaErrorInvalidConfiguration;
  }
  const int32_t places = p.processors / Tile::kCluster;
  params.order = order_product(params.row_tiles, params.columns, params.group, projections,
                               gradients, params.span_rows);
  if (p.counters != nullptr) {
    place_counters<Tile>(params, p);
    status = start_work<ClearCounters>(1, {p.counters, count_product_counters(p)}, stream);
    if (status != cudaSuccess) return status;
  }
  const int64_t clusters = std::min<int64_t>(params.order.items(), places);
  const auto start = [&](auto dropping) {
    using Work = ExtendedProduct<T, Tile, kDepthIsContiguous, dropping>;
    return start_work<Work>(clusters * Tile::kCluster, params, stream, Tile::kCluster);
  };
  if constexpr (!kDepthIsContiguous) {
    if (drops) return start(std::true_type());
  }
  return start(std::false_type());
}

/// Whose tiles make their latents.
template <class T>
cudaError_t launch_projecting(const ExtendedProductParams& p, cudaStream_t stream) {
  if (p.projection.latent == nullptr || !p.depth_is_contiguous) return cudaErrorInvalidValue;
  return p.tile == ProductTile::k128x256
             ? launch_tile<T, Tile<256, 4, /*kProjects=*/true>, true>(p, stream)
             : launch_tile<T, Tile<128, 6, /*kProjects=*/true>, true>(p, stream);
}

template <class T, bool kDepthIsContiguous>
cudaError_t launch(const ExtendedProductParams& p, cudaStream_t stream) {
  return p.tile == ProductTile::k128x256
             ? launch_tile<T, Tile<256, 4>, kDepthIsContiguous>(p, stream)
             : launch_tile<T, Tile<128, 6>, kDepthIsContiguous>(p, stream);
}

template <class T>
cudaError_t launch(const ExtendedProductParams& p, cudaStream_t stream) {
  return p.depth_is_contiguous ? launch<T, true>(p, stream) : launch<T, false>(p, stream);
}

cudaError_t launch_bf16(const ExtendedProductParams& params, cudaStream_t stream);
cudaError_t launch_fp16(const ExtendedProductParams& params, cudaStream_t stream);
cudaError_t launch_projecting_bf16(const ExtendedProductParams& params, cudaStream_t stream);
cudaError_t launch_projecting_fp16(const ExtendedProductParams& params, cudaStream_t stream);

}  // namespace gralora::extended_product
