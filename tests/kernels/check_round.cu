// kernels/round.h: one to four arrays in a launch, empty ones among them, tails of a group, rows
// that are padded, fp32 sources and such of the result's own type.
#include <memory>

#include "kernels/round.h"
#include "support.h"

namespace gralora::check {
namespace {

struct RoundCase {
  int64_t rows, width, pitch;
};

template <class From, class T>
void check_case(ElementType from_type, const std::vector<RoundCase>& cases) {
  std::vector<std::unique_ptr<Array<From>>> from;
  std::vector<std::unique_ptr<Array<T>>> to;
  RoundParams p{};
  std::string name = std::string(Traits<T>::kName) + " round" + (sizeof(From) == 4 ? " fp32" : "");
  for (const RoundCase& c : cases) {
    from.push_back(std::make_unique<Array<From>>(c.rows * c.width));
    to.push_back(std::make_unique<Array<T>>(c.rows * c.pitch));
    from.back()->fill(1, 1);
    to.back()->poison();
    p.arrays[p.count++] = {.from = from.back()->device(),
                           .to = to.back()->device(),
                           .rows = c.rows,
                           .width = c.width,
                           .pitch = c.pitch,
                           .from_type = from_type,
                           .type = Traits<T>::kType};
    name += " " + std::to_string(c.rows) + "x" + std::to_string(c.width) + "/" +
            std::to_string(c.pitch);
  }
  check_cuda(launch_round(p, nullptr), "round");
  int64_t wrong = 0;
  for (size_t a = 0; a < cases.size(); ++a) {
    const RoundCase& c = cases[a];
    to[a]->fetch();
    if (c.rows * c.pitch == 0) wrong += to[a]->count_written();
    for (int64_t row = 0; row < c.rows; ++row) {
      for (int64_t e = 0; e < c.pitch; ++e) {
        const double expected =
            e < c.width ? float(T(float(from[a]->host[row * c.width + e]))) : 0.0;
        wrong += !((*to[a])[row * c.pitch + e] == expected);
      }
    }
  }
  report(name, wrong);
}

template <class T>
void check_type() {
  check_case<float, T>(ElementType::kFloat32, {{1, 0, 0}});
  check_case<float, T>(ElementType::kFloat32, {{1, 1, 1}});
  check_case<float, T>(ElementType::kFloat32, {{1, 0, 0}, {1, 9, 9}, {0, 6, 8}, {1, 1024, 1024}});
  check_case<float, T>(ElementType::kFloat32,
                       {{1, 4096, 4096}, {100, 6, 8}, {1, 7, 7}, {33, 41, 48}});
  check_case<T, T>(Traits<T>::kType, {{100, 6, 8}, {5, 16, 16}, {33, 41, 48}});
}

}  // namespace

void check_round() {
  check_type<__nv_bfloat16>();
  check_type<__half>();
}

}  // namespace gralora::check
