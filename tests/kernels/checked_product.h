// An extended product of a check: its operands, the launch, and every result against its sum.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "kernels/extended_product.h"
#include "mask.h"
#include "support.h"

namespace gralora::check {

struct TermCase {
  int inner, width;  // blocks of the rows, and their width
};

struct OutputCase {
  int blocks, width;
};

/// A gradient that is summed among the tiles: of the product's latent, or of one of its own.
struct GradientCase {
  int blocks, width, rank;
  bool of_latent = false, rank_first = false, wide = true;
};

/// Several terms or several outputs. Where the latent is made on the way, the rank is cut by all
/// blocks of all rows.
struct ProductCase {
  int T;
  std::vector<TermCase> terms;
  std::vector<OutputCase> outputs;
  int rank;
  bool has_bias = true;
  bool projects = false;
  std::vector<GradientCase> gradients = {};
  bool draws = false;     // its items, also without projections
  bool is_ahead = false;  // the latent, as if the kernel before made it
  bool drops = false;     // the latent's term, and so many of the terms
  int dropped_terms = 0;
  bool in_tiles = false;  // are the latents made that the product projects
  int gradient_span = 0;
};

/// A matrix whose rows lie further apart than they are long, with one axis contiguous or the other.
template <class T>
struct Matrix {
  int64_t pitch;
  bool by_first;  // the first axis is contiguous
  Array<T> array;

  Matrix(int64_t first, int64_t second, bool by_first)
      : pitch(padded(by_first ? first : second) + 8),
        by_first(by_first),
        array((by_first ? second : first) * pitch) {
    array.fill(by_first ? first : second, pitch);
  }
  double at(int64_t i, int64_t j) const { return array[by_first ? j * pitch + i : i * pitch + j]; }
};

template <class T>
struct TermArrays {
  int inner, width, depth;
  int64_t row_pitch;
  Array<T> rows;
  Matrix<T> made;  // blocks one below the other

  TermArrays(const TermCase& term, int tokens, int latent_columns, bool by_depth)
      : inner(term.inner),
        width(term.width),
        depth(term.inner * term.width),
        row_pitch(depth + 8),
        rows(tokens * row_pitch),
        // By depth: columns are contiguous. Else each block has its columns as rows.
        made(by_depth ? depth : inner * latent_columns, by_depth ? latent_columns : width, false) {
    rows.fill(depth, row_pitch);
  }
};

template <class T>
struct OutputArrays {
  int blocks, width, columns;
  int64_t factor_rows;
  Matrix<T> factor;  // blocks one below the other
  Array<T> bias, out;

  OutputArrays(const OutputCase& output, int tokens, int rank, bool by_depth)
      : blocks(output.blocks),
        width(output.width),
        columns(output.blocks * output.width),
        factor_rows(by_depth ? rank : output.width),
        factor(blocks * factor_rows, by_depth ? output.width : rank, false),
        bias(columns),
        out(static_cast<int64_t>(tokens) * columns) {
    bias.fill(columns, columns);
    out.poison();
  }
  double factor_at(int block, int q, int w, bool by_depth) const {
    return by_depth ? factor.at(block * factor_rows + q, w) : factor.at(block * factor_rows + w, q);
  }
};

template <class T>
struct GradientArrays {
  GradientCase c;
  int64_t pitch, latent_pitch;
  Array<T> activation, latent, out;
  Array<float> wide_out;

  GradientArrays(const GradientCase& c, int tokens)
      : c(c),
        pitch(padded(c.blocks * c.width) + 8),
        latent_pitch(padded(c.rank) + 8),
        activation(tokens * pitch),
        latent(c.of_latent ? 0 : int64_t{c.blocks} * tokens * latent_pitch),
        out(int64_t{c.blocks} * c.width * c.rank),
        wide_out(int64_t{c.blocks} * c.width * c.rank) {
    activation.fill(c.blocks * c.width, pitch);
    if (!c.of_latent) latent.fill(c.rank, latent_pitch);
    out.poison();
    wide_out.poison();
  }
  double at(int block, int column, int q) const {
    const int64_t first = int64_t{block} * c.width * c.rank;
    const int64_t at = first + (c.rank_first ? q * c.width + column : column * c.rank + q);
    return c.wide ? wide_out[at] : out[at];
  }
};

/// A product, the latents that it makes and the gradients that it sums: each against its sum, from
/// the latents as they were rounded. A NaN in one block of the last rows is in that block's latents
/// alone.
template <class T>
class CheckedProduct {
 public:
  CheckedProduct(const ProductCase& c, ProductTile tile, bool by_depth, int processors)
      : c_(c),
        tile_(tile),
        by_depth_(by_depth),
        inner_(count(c.terms, &TermCase::inner)),
        blocks_(count(c.outputs, &OutputCase::blocks)),
        s_(c.rank / inner_),
        latent_pitch_(padded(c.rank) + 8),
        latent_(int64_t{blocks_} * c.T * latent_pitch_) {
    for (const TermCase& term : c.terms) {
      terms_.push_back(std::make_unique<TermArrays<T>>(term, c.T, blocks_ * s_, by_depth));
    }
    for (const OutputCase& output : c.outputs) {
      outputs_.push_back(std::make_unique<OutputArrays<T>>(output, c.T, c.rank, by_depth));
    }
    for (size_t w = 0; w < std::max(terms_.size(), outputs_.size()); ++w) {
      weights_.push_back(
          std::make_unique<Matrix<T>>(term_of(w).depth, output_of(w).columns, by_depth));
    }
    for (const GradientCase& gradient : c.gradients) {
      gradients_.push_back(std::make_unique<GradientArrays<T>>(gradient, c.T));
    }
    if (c.projects) {
      latent_.poison();
      TermArrays<T>& last = *terms_.back();
      if (last.inner > 1) {
        // A block of one token; the boxes of the block before may reach over it.
        last.rows.host[(last.inner - 1) * last.width] = T(NAN);
        last.rows.send();
      }
    } else {
      latent_.fill(c.rank, latent_pitch_);
    }
    launch(processors);
  }

  void check() {
    int64_t wrong = 0;
    // A sample of every tile: the whole is a long sum on the host.
    for (int t = 0; t < c_.T; t += t % 64 == 62 ? 2 : 1 + c_.T / 100) {
      if (c_.projects) wrong += count_wrong_latents(t);
      int first_block = 0;
      for (size_t o = 0; o < outputs_.size(); ++o) {
        wrong += count_wrong_results(t, o, first_block);
        first_block += outputs_[o]->blocks;
      }
    }
    for (const auto& output : outputs_) wrong += c_.T == 0 ? output->out.count_written() : 0;
    for (const auto& gradient : gradients_) wrong += count_wrong_sums(*gradient);
    report(name(), wrong);
  }

 private:
  template <class Part>
  static int count(const std::vector<Part>& parts, int Part::* member) {
    int sum = 0;
    for (const Part& part : parts) sum += part.*member;
    return sum;
  }

  TermArrays<T>& term_of(size_t weight) { return *terms_[terms_.size() == 1 ? 0 : weight]; }
  OutputArrays<T>& output_of(size_t weight) { return *outputs_[outputs_.size() == 1 ? 0 : weight]; }

  void launch(int processors) {
    ExtendedProductParams p{};
    for (auto& term : terms_) {
      p.terms[p.term_count++] = {
          .rows = term->rows.device(),
          .row_stride = term->row_pitch,
          .depth = term->depth,
          .inner = term->inner,
          .factor = c_.projects ? term->made.array.device() : nullptr,
          .factor_block_stride = (by_depth_ ? term->width : blocks_ * s_) * term->made.pitch,
          .factor_pitch = term->made.pitch};
    }
    for (auto& output : outputs_) {
      p.outputs[p.output_count++] = {
          .factor = output->factor.array.device(),
          .factor_block_stride = output->factor_rows * output->factor.pitch,
          .factor_pitch = output->factor.pitch,
          .bias = c_.has_bias ? output->bias.device() : nullptr,
          .out = output->out.device(),
          .blocks = output->blocks,
          .width = output->width};
    }
    for (size_t w = 0; w < weights_.size(); ++w) {
      p.weights[w] = {weights_[w]->array.device(), weights_[w]->pitch};
    }
    p.latent = latent_.device();
    p.T = c_.T;
    p.rank = c_.rank;
    p.latent_plane = c_.T * latent_pitch_;
    p.latent_pitch = latent_pitch_;
    p.latent_is_ahead = c_.is_ahead;
    if (c_.drops) p.dropout = mask_.source();
    p.dropped_terms = c_.dropped_terms;
    p.depth_is_contiguous = by_depth_;
    p.type = Traits<T>::kType;
    p.tile = tile_;
    p.processors = processors;
    if (c_.projects)
      p.projection = {.latent = latent_.device(), .scaling = 0.5f, .in_tiles = c_.in_tiles};
    for (auto& gradient : gradients_) add_gradient(p, *gradient);
    p.gradient_span = c_.gradient_span;
    Array<float> partials(c_.gradient_span > 0 ? count_product_partials(p) : 0);
    if (c_.gradient_span > 0) p.gradient_partials = partials.poison().device();
    Array<float> counters(count_product_counters(p));
    if ((c_.projects && !c_.in_tiles) || c_.draws) {
      p.counters = reinterpret_cast<int32_t*>(counters.poison().device());
    }
    check_cuda(launch_extended_product(p, nullptr), "extended_product");
    latent_.fetch();
    for (auto& output : outputs_) output->out.fetch();
    for (auto& gradient : gradients_) {
      gradient->out.fetch();
      gradient->wide_out.fetch();
    }
  }

  void add_gradient(ExtendedProductParams& p, GradientArrays<T>& from) {
    const GradientCase& c = from.c;
    const int64_t latent_pitch = c.of_latent ? latent_pitch_ : from.latent_pitch;
    p.gradients[p.gradient_count++] = {
        .activation = from.activation.device(),
        .latent = c.of_latent ? latent_.device() : from.latent.device(),
        .out = c.wide ? static_cast<void*>(from.wide_out.device()) : from.out.device(),
        .activation_block_stride = c.width,
        .activation_pitch = from.pitch,
        .latent_block_stride = c_.T * latent_pitch,
        .latent_pitch = latent_pitch,
        .blocks = c.blocks,
        .width = c.width,
        .rank = c.rank,
        .rank_first = c.rank_first,
        .drops = false,
        .out_type = c.wide ? ElementType::kFloat32 : Traits<T>::kType};
  }

  double latent_at(int block, int t, int q) const {
    return latent_[(static_cast<int64_t>(block) * c_.T + t) * latent_pitch_ + q];
  }

  /// By dropout, of what the adapter adds to an element of the result.
  double kept_share(int64_t element) const {
    return !c_.drops ? 1 : mask_.keeps(element) ? mask_.rule.scale : 0;
  }

  static bool matches(double actual, const Exact& exact) {
    return std::isnan(exact.value) ? std::isnan(actual)
                                   : is_close(actual, exact, Traits<T>::kHalfPlace);
  }

  int64_t count_wrong_latents(int t) const {
    int64_t wrong = 0;
    int before = 0;
    for (const auto& term : terms_) {
      for (int i = 0; i < term->inner; ++i) {
        for (int column = 0; column < blocks_ * s_; ++column) {
          Exact exact;
          for (int d = 0; d < term->width; ++d) {
            const double factor = by_depth_ ? term->made.at(i * term->width + d, column)
                                            : term->made.at(i * blocks_ * s_ + column, d);
            exact.add(0.5 * term->rows[t * term->row_pitch + i * term->width + d] * factor);
          }
          wrong += !matches(latent_at(column / s_, t, (before + i) * s_ + column % s_), exact);
        }
      }
      before += term->inner;
    }
    return wrong;
  }

  int64_t count_wrong_results(int t, size_t o, int first_block) const {
    const OutputArrays<T>& output = *outputs_[o];
    int64_t wrong = 0;
    for (int column = t % 3; column < output.columns; column += 3) {
      const int block = column / output.width, w = column % output.width;
      const double kept = kept_share(int64_t{t} * output.columns + column);
      Exact exact;
      for (size_t k = 0; k < terms_.size(); ++k) {
        const double scale = static_cast<int>(k) < c_.dropped_terms ? kept : 1;
        for (int d = 0; d < terms_[k]->depth; ++d) {
          const double row = terms_[k]->rows[t * terms_[k]->row_pitch + d];
          exact.add(scale * row * weights_[k + o]->at(d, column));
        }
      }
      for (int q = 0; q < c_.rank; ++q) {
        exact.add(kept * latent_at(first_block + block, t, q) *
                  output.factor_at(block, q, w, by_depth_));
      }
      if (c_.has_bias) exact.add(output.bias[column]);
      wrong += !matches(output.out[static_cast<int64_t>(t) * output.columns + column], exact);
    }
    return wrong;
  }

  int64_t count_wrong_sums(const GradientArrays<T>& gradient) const {
    const GradientCase& c = gradient.c;
    int64_t wrong = 0;
    for (int block = 0; block < c.blocks; ++block) {
      for (int column = block % 5; column < c.width; column += 5) {
        for (int q = 0; q < c.rank; ++q) {
          Exact exact;
          for (int t = 0; t < c_.T; ++t) {
            const int64_t row = int64_t{block} * c_.T + t;
            exact.add(gradient.activation[t * gradient.pitch + block * c.width + column] *
                      (c.of_latent ? latent_at(block, t, q)
                                   : gradient.latent[row * gradient.latent_pitch + q]));
          }
          const double actual = gradient.at(block, column, q);
          wrong += !(std::isnan(exact.value)
                         ? std::isnan(actual)
                         : is_close(actual, exact, c.wide ? 1e-6 : Traits<T>::kHalfPlace));
        }
      }
    }
    return wrong;
  }

  std::string name() const {
    const auto size = size_of(tile_);
    std::string name = std::string(Traits<T>::kName) + " extended_product " +
                       std::to_string(size.tokens) + "x" + std::to_string(size.columns) + " T " +
                       std::to_string(c_.T) + " from";
    for (const TermCase& term : c_.terms) {
      name += " " + std::to_string(term.inner) + "x" + std::to_string(term.width);
    }
    name += " to";
    for (const OutputCase& output : c_.outputs) {
      name += " " + std::to_string(output.blocks) + "x" + std::to_string(output.width);
    }
    return name + " rank " + std::to_string(c_.rank) +
           (c_.in_tiles   ? " made in tiles"
            : c_.projects ? " made on the way"
                          : "") +
           (gradients_.empty() ? "" : " " + std::to_string(gradients_.size()) + " gradients") +
           (c_.gradient_span > 0 ? " span " + std::to_string(c_.gradient_span) : "") +
           (c_.drops ? " dropped" : "") + (by_depth_ ? " depth contiguous" : "") +
           (c_.has_bias ? " bias" : "");
  }

  const ProductCase& c_;
  ProductTile tile_;
  bool by_depth_;
  int inner_, blocks_, s_;
  int64_t latent_pitch_;
  const Mask mask_{0.3};
  Array<T> latent_;
  std::vector<std::unique_ptr<TermArrays<T>>> terms_;
  std::vector<std::unique_ptr<OutputArrays<T>>> outputs_;
  std::vector<std::unique_ptr<Matrix<T>>> weights_;  // [depth, columns]
  std::vector<std::unique_ptr<GradientArrays<T>>> gradients_;
};

}  // namespace gralora::check
