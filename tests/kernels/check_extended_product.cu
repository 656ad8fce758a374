// kernels/extended_product.h: both tiles, both layouts of weight and factor, with and without a
// bias, ranks beyond a stage and below a product, tails on every axis, more tiles than places,
// several products in one sum; with the projection among the tiles; with gradients there; and with
// dropout of the adapter's part.
#include "checked_product.h"

namespace gralora::check {
namespace {

template <class T>
void check_type() {
  if (!runs_sm90()) return;
  int device = 0, processors = 0;
  check_cuda(cudaGetDevice(&device), "cudaGetDevice");
  check_cuda(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device),
             "cudaDeviceGetAttribute");
  for (const auto tile : {ProductTile::k128x256, ProductTile::k128x128}) {
    for (const bool depth_is_contiguous : {false, true}) {
      const auto check = [&](const ProductCase& c, int places) {
        CheckedProduct<T>(c, tile, depth_is_contiguous, places).check();
      };
      check({0, {{1, 64}}, {{1, 64}}, 8, false}, processors);
      check({1, {{1, 64}}, {{1, 64}}, 8}, processors);
      check({129, {{1, 200}}, {{2, 328}}, 16, false}, processors);
      check({300, {{1, 72}}, {{4, 144}}, 24}, processors);
      check({257, {{1, 136}}, {{3, 48}}, 40, false}, processors);
      check({100, {{1, 8}}, {{2, 8}}, 3}, processors);
      // Several tiles for each place, and more steps than the ring has stages.
      check({700, {{1, 520}}, {{2, 264}}, 136}, 4);
      check({513, {{1, 448}}, {{1, 512}}, 64, false}, 2);
      // More rows of tiles than are walked together.
      check({2400, {{1, 64}}, {{1, 136}}, 8, false}, 6);
      check({300, {{1, 200}}, {{2, 136}}, 24, true, false, {}, false, /*is_ahead=*/true}, 4);
      // Several products in one sum, and several results of the same rows.
      check({130, {{1, 200}, {1, 72}}, {{2, 136}}, 40}, processors);
      check({520, {{1, 264}, {1, 8}, {1, 136}}, {{1, 264}}, 72, false}, 4);
      check({130, {{1, 200}}, {{2, 136}, {1, 264}}, 40}, processors);
      check({520, {{1, 136}}, {{1, 264}, {4, 8}, {2, 72}}, 72}, 4);
      // With the latents made on the way.
      const auto check_made = [&](ProductCase c, int places) {
        c.projects = true;
        check(c, places);
      };
      check_made({1, {{1, 64}}, {{1, 64}}, 8}, processors);
      check_made({300, {{2, 72}}, {{2, 136}}, 16}, processors);
      check_made({513, {{4, 136}}, {{4, 72}}, 64}, 4);
      // Longer than the ring, in steps by one and by two.
      check_made({300, {{2, 840}}, {{2, 136}}, 16}, 4);
      check_made({130, {{1, 712}}, {{4, 64}}, 32}, 4);
      check_made({257, {{3, 200}}, {{2, 264}}, 120}, 2);
      check_made({700, {{2, 64}}, {{4, 64}}, 64}, 4);
      check_made({2400, {{1, 64}}, {{2, 136}}, 24}, 4);
      // More places than tiles.
      check_made({2400, {{2, 72}}, {{1, 64}}, 16}, 16);
      check_made({260, {{2, 200}, {1, 72}, {3, 8}}, {{2, 72}}, 48}, 4);
      check_made({513, {{1, 72}, {2, 328}}, {{1, 264}}, 72, false}, 2);
      check_made({300, {{2, 136}}, {{2, 136}, {3, 72}}, 16}, 4);
      check_made({2400, {{2, 72}}, {{1, 264}, {1, 72}, {2, 8}}, 48, false}, 6);
      // Made by tiles themselves: one block to four, a walk as short as a step and longer than the
      // ring, tails of tokens and columns, several tiles of a block and of a place.
      if (depth_is_contiguous) {
        const auto check_in_tiles = [&](ProductCase c, int places) {
          c.projects = c.in_tiles = true;
          check(c, places);
        };
        check_in_tiles({1, {{1, 64}}, {{1, 64}}, 16}, processors);
        check_in_tiles({300, {{2, 64}}, {{2, 136}}, 32}, processors);
        check_in_tiles({257, {{3, 192}}, {{3, 72}}, 48, false}, 4);
        check_in_tiles({700, {{4, 320}}, {{4, 264}}, 64}, 4);
        check_in_tiles({300, {{2, 128}}, {{2, 264}, {4, 8}, {1, 72}}, 32, false}, 2);
      }
      // With gradients, which backward passes alone have.
      if (!depth_is_contiguous) {
        const auto check_summed = [&](ProductCase c, int places,
                                      const std::vector<GradientCase>& gradients,
                                      bool draws = false) {
          c.gradients = gradients;
          c.draws = draws;
          check(c, places);
        };
        const auto check_dropped = [&](ProductCase c, int places, int dropped_terms = 0) {
          c.drops = true;
          c.dropped_terms = dropped_terms;
          check(c, places);
        };
        check_dropped({1, {{1, 64}}, {{1, 64}}, 8}, processors);
        check_dropped({300, {{1, 520}}, {{2, 264}}, 136, false}, 4);
        check_dropped({257, {{1, 72}}, {{3, 48}}, 40}, processors);
        check_dropped({1100, {{1, 24}, {1, 200}}, {{2, 136}}, 24, false}, 4, 1);
        check_dropped({300, {{1, 200}}, {{2, 136}}, 64, true, false, {}, false, true}, 2);
        check_dropped({700, {{1, 136}}, {{3, 48}}, 40, false, false, {{3, 48, 40, true, true}}}, 4);
        // The same with items that are drawn, and with a latent that is ahead.
        check_dropped({700, {{1, 136}}, {{3, 48}}, 40, false, false, {{3, 48, 40}}, true}, 4);
        check_dropped(
            {300, {{1, 72}}, {{2, 136}}, 24, true, false, {{2, 264, 24, true}}, false, true}, 4);
        const GradientCase one{1, 64, 8}, narrow{2, 72, 16, false, true, false};
        check_summed({1, {{1, 64}}, {{1, 64}}, 8}, processors, {one});
        check_summed({300, {{1, 72}}, {{2, 136}}, 24}, 4, {{2, 264, 24, true}, narrow});
        check_summed({700, {{1, 136}}, {{3, 48}}, 40, false}, 2,
                     {{3, 48, 40, true, true}, {1, 520, 100}, {1, 8, 3}, narrow});
        // Latents that are ahead: with several terms, walks shorter than the ring, and gradients
        // that need nothing of it first; ranks and widths that no eights divide.
        const auto check_ahead = [&](ProductCase c, int places,
                                     const std::vector<GradientCase>& gradients) {
          c.is_ahead = true;
          check_summed(c, places, gradients);
        };
        check_ahead({1, {{1, 64}}, {{1, 64}}, 8}, processors, {one});
        check_ahead({300, {{1, 72}, {2, 136}}, {{2, 136}}, 24}, 4,
                    {{2, 264, 24, true}, narrow, {1, 72, 20, false, true, false}});
        // Clusters that have a gradient alone.
        check_ahead({70, {{1, 200}}, {{1, 64}}, 16}, 16, {{4, 264, 16}, {1, 64, 16, true}});
        check_summed({130, {{1, 72}}, {{1, 64}}, 8}, 4, {{1, 76, 20, false, true, false}});
        const auto check_all = [&](ProductCase c, int places,
                                   const std::vector<GradientCase>& gradients) {
          c.projects = true;
          check_summed(c, places, gradients);
        };
        check_all({1, {{1, 64}}, {{1, 64}}, 8}, processors, {{1, 136, 8, true}});
        check_all({300, {{2, 72}}, {{2, 136}}, 16}, 4, {narrow, {2, 264, 16, true}});
        check_all({2400, {{2, 64}}, {{4, 64}}, 64}, 6, {{4, 40, 64, true, true, false}});
        // A short walk of the tiles: the gradients before the last of them.
        check_all({2400, {{2, 72}}, {{2, 136}}, 48, false}, 4, {{2, 136, 48, true}, narrow});
        check_all({513, {{1, 72}, {2, 328}}, {{1, 264}}, 72, false}, 2, {{1, 264, 72, true}, one});
        // More places than projections, so that a gradient comes right after a tile somewhere.
        check_all({1100, {{1, 64}}, {{1, 264}}, 8}, 8, {{1, 1056, 8, true}});
        // Spans of the tokens: the last one longer, too few tokens for two, several boxes of ranks,
        // clusters that end them in any order.
        const auto check_spans = [&](ProductCase c, int places, int span,
                                     const std::vector<GradientCase>& gradients) {
          c.gradient_span = span;
          check_all(c, places, gradients);
        };
        check_spans({2400, {{2, 64}}, {{4, 64}}, 64}, 6, 1024, {{4, 40, 64, true, true, false}});
        check_spans({3072, {{2, 72}}, {{2, 136}}, 48, false}, 4, 1024,
                    {{2, 136, 48, true}, narrow, {1, 300, 20, false, true}});
        check_spans({2049, {{1, 64}}, {{1, 264}}, 8}, 24, 1024, {{1, 1056, 8, true}});
        check_spans({4500, {{1, 64}}, {{1, 64}}, 104}, processors, 2048,
                    {{1, 64, 104, true, true}});
        check_spans({300, {{2, 72}}, {{2, 136}}, 16}, 4, 1024, {narrow, {2, 264, 16, true}});
        // Gradients by rank, and items that are drawn.
        check_summed({700, {{1, 136}}, {{3, 48}}, 40, false}, 4,
                     {{3, 48, 40, true, true}, {1, 520, 128}, {2, 272, 72, false, true, false}},
                     /*draws=*/true);
        check_all({700, {{2, 64}}, {{2, 200}}, 112}, 4, {{2, 200, 112, true}, {1, 640, 104}});
        if (tile == ProductTile::k128x256) {
          check_all({300, {{2, 88}}, {{1, 264}}, 176}, 4, {{1, 264, 176, true}, {2, 88, 256}});
          check_spans({2100, {{2, 88}}, {{1, 72}}, 176}, 4, 1024,
                      {{1, 72, 176, true}, {2, 88, 256}});
          // Groups of 2048 tokens, where a row has many tiles.
          check_spans({4500, {{1, 64}}, {{32, 8}}, 8, false}, processors, 2048,
                      {{32, 8, 8, true}, {1, 40, 24}});
        }
      }
      if (tile == ProductTile::k128x256) {
        check_made({300, {{2, 88}}, {{8, 64}}, 64}, 4);
        check_made({260, {{8, 8}}, {{4, 48}}, 320}, 4);
        // Products of three parts.
        check_made({300, {{2, 136}}, {{1, 136}, {2, 72}, {1, 8}}, 80}, 4);
        check_made({300, {{1, 712}}, {{2, 136}, {2, 72}}, 48}, 2);
      }
    }
  }
}

}  // namespace

// The order is the host's work alone, and a sanitizer fails a process that starts no kernel.
void check_extended_product_bf16() {
  check_product_order();
  check_type<__nv_bfloat16>();
}

void check_extended_product_fp16() { check_type<__half>(); }

}  // namespace gralora::check
