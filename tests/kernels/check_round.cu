// kernels/round.h: one to four arrays in a launch, empty ones among them, tails of a group.
#include <memory>

#include "kernels/round.h"
#include "support.h"

namespace gralora::check {
namespace {

template <class T>
void check_case(const std::vector<int64_t>& sizes) {
  std::vector<std::unique_ptr<Array<float>>> from;
  std::vector<std::unique_ptr<Array<T>>> to;
  RoundParams p{};
  std::string name = std::string(Traits<T>::kName) + " round";
  for (const int64_t size : sizes) {
    from.push_back(std::make_unique<Array<float>>(size));
    to.push_back(std::make_unique<Array<T>>(size));
    from.back()->fill(1, 1);
    to.back()->poison();
    RoundedArray& rounding = p.arrays[p.count++];
    rounding.from = from.back()->device();
    rounding.to = to.back()->device();
    rounding.elements = size;
    rounding.type = Traits<T>::kType;
    name += " " + std::to_string(size);
  }
  check_cuda(launch_round(p, nullptr), "round");
  int64_t wrong = 0;
  for (size_t a = 0; a < sizes.size(); ++a) {
    to[a]->fetch();
    if (sizes[a] == 0) wrong += to[a]->count_written();
    for (int64_t e = 0; e < sizes[a]; ++e) {
      wrong += !((*to[a])[e] == static_cast<double>(float(T(from[a]->host[e]))));
    }
  }
  report(name, wrong);
}

template <class T>
void check_type() {
  check_case<T>({0});
  check_case<T>({1});
  check_case<T>({0, 9, 0, 1024});
  check_case<T>({4096, 1000, 7, 1025});
}

}  // namespace

void check_round() {
  check_type<__nv_bfloat16>();
  check_type<__half>();
}

}  // namespace gralora::check
