// The base product with the adapter's term in the same sums, of compute capability 9.0a:
// csrc/cuda/extended_product.cpp fills and calls it where csrc/dispatch/select_extended_product.cpp
// says so.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/dropout.h"
#include "kernels/element_type.h"
#include "kernels/extended_product_tiles.h"
#include "kernels/weight_gradient.h"

namespace gralora {

/// One of the products that are added up, and what the latent is projected from its rows by where
/// it is made on the way:
///
/// latent[b, t, (p, rank)] = scaling * sum_v rows[t, (p, v)] * factor[p, v, (b, rank)]
///
/// The latents of several terms lie side by side along the rank.
struct ProductTerm {
  const void* rows;  // [T, depth], unit stride along the depth
  int64_t row_stride;
  int32_t depth;                 // a multiple of 8
  int32_t inner = 0;             // blocks of the rows; depth/inner is a multiple of 8
  const void* factor = nullptr;  // [inner, depth/inner, all blocks*s], unit stride along the same
                                 // axis as the outputs' factors: its depth or its columns
  int64_t factor_block_stride = 0, factor_pitch = 0;
};

/// One of the results, which have their blocks' planes of the latent one after the other.
struct ProductOutput {
  const void* factor;  // [blocks, rank, width], unit stride along the width where the weights'
                       // depth has unit stride, else along the rank
  int64_t factor_block_stride, factor_pitch;
  const void* bias;       // [blocks*width], or null
  void* out;              // [T, blocks*width], contiguous
  int32_t blocks, width;  // width is a multiple of 8
};

struct ProductWeight {
  const void* data;  // [depth, blocks*width], unit stride along either axis
  int64_t stride;    // along the other one
};

/// The latent made on the way, which takes counters; or without `latent`: it is there, or ahead.
struct ProductProjection {
  void* latent = nullptr;  // the product's; s = rank / all terms' inner is a multiple of 8, and
                           // without in_tiles all blocks*s are at most the tile's columns
  float scaling = 1;
  // By each tile for itself, without counters: from a single term, where the weights' depth is
  // contiguous, s is kTileLatents, the rank at most kMostTileLatents and a block of the rows a
  // multiple of kTileDepth wide.
  bool in_tiles = false;
};

/// out[t, (b, w)] = sum_d rows[t, d] * weight[d, (b, w)], summed over the terms,
///                  + sum_q latent[b, t, q] * factor[b, q, w] + bias[(b, w)]
///
/// or, with dropout, what the first `dropped_terms` terms and the latent make goes through that.
/// y from x, W transposed, H and B; dx from dy, W, G and A transposed. Several layers that share x
/// have several outputs of one term, and one output of several terms. Rounded once. Strides in
/// elements, multiples of 8 and not 0; pointers are 16-byte aligned.
struct ExtendedProductParams {
  ProductTerm terms[kMaxProducts];
  ProductOutput outputs[kMaxProducts];
  ProductWeight weights[kMaxProducts];  // of the terms or of the outputs: one of them is single
  int32_t term_count, output_count;
  const void* latent;  // [all blocks, T, rank], unit stride along the rank
  int64_t T;
  int32_t rank;
  int64_t latent_plane, latent_pitch;
  // The kernel just before makes the latent, and no kernel that may still run when the product
  // begins (launch.cuh) writes anything else that it reads. Then tiles begin while that one runs,
  // and wait for the latent alone; not with counters.
  bool latent_is_ahead = false;
  bool depth_is_contiguous;  // of the weights
  ElementType type;          // bf16 or fp16
  ProductTile tile;
  int32_t processors;           // of the current device
  int32_t* counters = nullptr;  // [count_product_counters()], written before they are read; or null
  ProductProjection projection;
  DropoutSource dropout;  // of a single output, where the weights' depth is not contiguous, and
                          // with a term that is not dropped; not with a projection
  int32_t dropped_terms = 0;
  // Gradients of factors that are summed among the tiles, over the T tokens, where the weights'
  // depth is not contiguous: without dropout, of at most the tile's columns of rank, T > 0. Their
  // latents are the product's, by the same pointer, or there before.
  GradientSum gradients[kMaxGradients];
  int32_t gradient_count = 0;
  // With latents made on the way they may be summed span by span of the tokens, each when its
  // latents are there and onto those before, in `gradient_partials`: [count_product_partials()]. A
  // span has a multiple of 2048 tokens, or of 1024 where a row of the results has fewer than 32
  // tiles; the last one what is left over as well. 0: all tokens at once.
  int64_t gradient_span = 0;
  float* gradient_partials = nullptr;
};

inline int32_t count_gradient_spans(const ExtendedProductParams& params) {
  if (params.gradient_span < 1 || params.T < params.gradient_span) return 1;
  return static_cast<int32_t>(params.T / params.gradient_span);
}

/// Items of a gradient, of each span: a cluster's columns of the activation.
constexpr int64_t count_gradient_items(const GradientSum& sum) {
  return int64_t{sum.blocks} * ((sum.width + kProductRows - 1) / kProductRows);
}

/// What the CTAs of a gradient's items hand over: boxes of 64 ranks.
constexpr int64_t count_gradient_boxes(const GradientSum& sum) {
  return count_gradient_items(sum) * kProductCluster * ((sum.rank + 63) / 64);
}

/// Numbers of the sums of all gradients' spans.
inline int64_t count_product_partials(const ExtendedProductParams& params) {
  int64_t boxes = 0;
  for (int g = 0; g < params.gradient_count; ++g) {
    boxes += count_gradient_boxes(params.gradients[g]);
  }
  return boxes * kProductRows / kProductCluster * 64;
}

/// Of a call. With counters whichever CTAs are free do what is next, without them each does its
/// share: as fast where all items take equally long on a GPU that has nothing else to do, and a
/// launch less.
inline int64_t count_product_counters(const ExtendedProductParams& params) {
  const int64_t row_tiles = (params.T + kProductRows - 1) / kProductRows;
  const int32_t spans = count_gradient_spans(params);
  int64_t boxes = 0;  // to which the warps of several spans add
  for (int g = 0; g < params.gradient_count && spans > 1; ++g) {
    boxes += count_gradient_boxes(params.gradients[g]);
  }
  return 1 + spans + row_tiles * kProductCluster + boxes * kProductStoreWarps;
}

cudaError_t launch_extended_product(const ExtendedProductParams& params, cudaStream_t stream);

}  // namespace gralora
