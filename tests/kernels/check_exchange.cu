// kernels/exchange.h: every width of a word, rows longer than a block of threads, no tokens.
#include "kernels/exchange.h"
#include "support.h"

namespace gralora::check {
namespace {

template <class T>
void check_case(int tokens, int inner, int outer, int s) {
  const int64_t pitch = padded(inner * s);
  Array<T> product(static_cast<int64_t>(inner) * tokens * outer * s);
  Array<T> latent(outer * tokens * pitch);
  const auto elements = static_cast<int64_t>(product.host.size());
  product.fill(elements, elements);
  latent.poison();
  ExchangeParams p{};
  p.product = product.device();
  p.latent = latent.device();
  p.T = tokens;
  p.inner = inner;
  p.outer = outer;
  p.run = s * static_cast<int>(sizeof(T));
  p.latent_plane = tokens * pitch * static_cast<int64_t>(sizeof(T));
  p.latent_pitch = pitch * static_cast<int64_t>(sizeof(T));
  check_cuda(launch_exchange(p, nullptr), "exchange");
  latent.fetch();
  int64_t wrong = tokens == 0 ? latent.count_written() : 0;
  for (int q = 0; q < outer; ++q) {
    for (int t = 0; t < tokens; ++t) {
      for (int e = 0; e < inner * s; ++e) {
        const int64_t at = (static_cast<int64_t>(e / s) * tokens + t) * outer * s + q * s + e % s;
        // Not !=: NaN, which was never written, must count as wrong.
        wrong += !(latent[(int64_t{q} * tokens + t) * pitch + e] == product[at]);
      }
    }
  }
  report(std::string(sizeof(T) == 4 ? "fp32" : "16-bit") + " exchange T " + std::to_string(tokens) +
             " blocks " + std::to_string(inner) + "x" + std::to_string(outer) + " s " +
             std::to_string(s),
         wrong);
}

}  // namespace

void check_exchange() {
  check_case<__half>(0, 4, 4, 16);
  check_case<__half>(70, 4, 4, 16);
  check_case<__half>(33, 3, 2, 4);
  check_case<__half>(33, 3, 2, 6);
  check_case<__half>(5, 40, 3, 77);
  check_case<float>(33, 3, 2, 5);
}

}  // namespace gralora::check
