// kernels/weight_gradient.h: every tile, one to four sums in a launch, whole and split walks, both
// orders of the result's axes, 16-bit and fp32 results, with and without dropout, no tokens.
#include <memory>

#include "kernels/weight_gradient.h"
#include "mask.h"

namespace gralora::check {
namespace {

struct SumCase {
  int blocks, width, rank;
};

/// The operands and the result of one sum; the result has the operands' type, or fp32.
template <class T, class Out>
struct SumArrays {
  SumCase c;
  int tokens;
  int64_t activation_pitch, latent_pitch;
  Array<T> activation, latent;
  Array<Out> out;

  SumArrays(const SumCase& c, int tokens)
      : c(c),
        tokens(tokens),
        activation_pitch(c.blocks * c.width + 8),
        latent_pitch(padded(c.rank)),
        activation(tokens * activation_pitch),
        latent(c.blocks * tokens * latent_pitch),
        out(static_cast<int64_t>(c.blocks) * c.width * c.rank) {
    activation.fill(c.blocks * c.width, activation_pitch);
    latent.fill(c.rank, latent_pitch);
    out.poison();
  }
  GradientSum describe(ElementType type, bool rank_first, bool drops) const {
    GradientSum sum{};
    sum.activation = activation.device();
    sum.latent = latent.device();
    sum.out = out.device();
    sum.activation_block_stride = c.width;
    sum.activation_pitch = activation_pitch;
    sum.latent_block_stride = tokens * latent_pitch;
    sum.latent_pitch = latent_pitch;
    sum.blocks = c.blocks;
    sum.width = c.width;
    sum.rank = c.rank;
    sum.rank_first = rank_first;
    sum.drops = drops;
    sum.out_type = type;
    return sum;
  }
  int64_t count_wrong(const GradientSum& sum, const Mask& mask, double place) {
    out.fetch();
    int64_t wrong = 0;
    for (int b = 0; b < c.blocks; ++b) {
      for (int w = 0; w < c.width; ++w) {
        for (int q = 0; q < c.rank; ++q) {
          Exact exact;
          for (int t = 0; t < tokens; ++t) {
            const int64_t element = int64_t{t} * c.blocks * c.width + b * c.width + w;
            if (sum.drops && !mask.keeps(element)) continue;
            exact.add(activation[t * activation_pitch + b * c.width + w] *
                      latent[(int64_t{b} * tokens + t) * latent_pitch + q] *
                      (sum.drops ? mask.rule.scale : 1));
          }
          const int64_t row = sum.rank_first ? int64_t{b} * c.rank + q : int64_t{b} * c.width + w;
          const int64_t at = sum.rank_first ? row * c.width + w : row * c.rank + q;
          wrong += !is_close(out[at], exact, place);
        }
      }
    }
    return wrong;
  }
};

std::string name_of(GradientTile tile) {
  const GradientTileSize size = size_of(tile);
  return std::to_string(size.activations) + "x" + std::to_string(size.latents);
}

/// The sums of one launch. Every other one has an fp32 result, the second half the rank first; with
/// `drops`, the first is the adapter's input.
template <class T>
void check_case(GradientTile tile, int splits, bool drops, int tokens,
                const std::vector<SumCase>& cases) {
  std::vector<std::unique_ptr<SumArrays<T, T>>> narrow;
  std::vector<std::unique_ptr<SumArrays<T, float>>> wide;
  const Mask mask(0.3);
  WeightGradientParams p{};
  p.T = tokens;
  p.type = Traits<T>::kType;
  p.tile = tile;
  p.splits = splits;
  if (drops) p.dropout = mask.source();
  std::string name = std::string(Traits<T>::kName) + " weight_gradient " + name_of(tile) + " T " +
                     std::to_string(tokens) + " splits " + std::to_string(splits) +
                     (drops ? " dropped" : "");
  for (const SumCase& c : cases) {
    const bool rank_first = p.count >= 2, of_input = drops && p.count == 0;
    if (p.count % 2 == 0) {
      narrow.push_back(std::make_unique<SumArrays<T, T>>(c, tokens));
      p.sums[p.count] = narrow.back()->describe(Traits<T>::kType, rank_first, of_input);
    } else {
      wide.push_back(std::make_unique<SumArrays<T, float>>(c, tokens));
      p.sums[p.count] = wide.back()->describe(ElementType::kFloat32, rank_first, of_input);
    }
    ++p.count;
    name += " " + std::to_string(c.blocks) + "x" + std::to_string(c.width) + "x" +
            std::to_string(c.rank);
  }
  Array<float> workspace(gradient_workspace(p));
  workspace.poison();
  if (splits > 1) p.workspace = workspace.device();
  check_cuda(launch_weight_gradient(p, nullptr), "weight_gradient");
  int64_t wrong = 0;
  for (int which = 0; which < p.count; ++which) {
    const GradientSum& sum = p.sums[which];
    wrong += which % 2 == 0 ? narrow[which / 2]->count_wrong(sum, mask, Traits<T>::kHalfPlace)
                            : wide[which / 2]->count_wrong(sum, mask, 0);
  }
  report(name, wrong);
}

template <class T>
void check_type() {
  for (const GradientTile tile :
       {GradientTile::k64x64, GradientTile::k128x32, GradientTile::k128x64}) {
    for (const int splits : {1, 3}) {
      check_case<T>(tile, splits, false, 0, {{2, 64, 16}, {2, 72, 16}});
      check_case<T>(tile, splits, false, 1, {{2, 64, 16}, {2, 72, 16}});
      check_case<T>(tile, splits, false, 300, {{1, 72, 5}, {1, 136, 5}, {3, 72, 24}});
      check_case<T>(tile, splits, true, 129, {{2, 288, 16}, {4, 48, 16}, {1, 576, 8}, {1, 192, 8}});
      check_case<T>(tile, splits, true, 67, {{3, 72, 40}});
    }
  }
  if (!runs_sm90()) return;
  for (const GradientTile tile :
       {GradientTile::kBulk128x32, GradientTile::kBulk128x64, GradientTile::kBulk128x128}) {
    for (const int splits : {1, 3}) {
      check_case<T>(tile, splits, false, 0, {{2, 64, 16}, {2, 72, 16}});
      check_case<T>(tile, splits, false, 1, {{2, 64, 16}, {2, 72, 16}});
      check_case<T>(tile, splits, false, 300, {{1, 72, 5}, {1, 136, 5}, {3, 72, 24}});
      check_case<T>(tile, splits, false, 129,
                    {{2, 288, 16}, {4, 48, 16}, {1, 576, 8}, {1, 192, 8}});
      // Longer walks than the ring, more than one tile of latents.
      check_case<T>(tile, splits, false, 1500, {{2, 136, 24}, {1, 128, 136}});
      check_case<T>(tile, splits, true, 129, {{2, 288, 16}, {4, 48, 16}, {1, 576, 8}});
      check_case<T>(tile, splits, true, 1500, {{2, 136, 24}, {1, 128, 136}});
      check_case<T>(tile, splits, true, 200, {{1, 128, 136}});
      check_case<T>(tile, splits, true, 0, {{2, 64, 16}, {2, 72, 16}});
      check_case<T>(tile, splits, true, 1, {{2, 64, 16}, {2, 72, 16}});
    }
  }
}

}  // namespace

void check_weight_gradient() {
  check_type<__nv_bfloat16>();
  check_type<__half>();
}

}  // namespace gralora::check
