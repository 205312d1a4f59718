// The two kernels of csrc/kernels.cuh on a host, for ctypes; see cuda_on_host.h. The caller passes the grid and the thread order.
#include "cuda_on_host.h"

#include "../../csrc/kernels.cuh"

extern "C" {

void emulate_groups(const float* rewards, const void* offsets, int wide_offsets, const float* weights, int64_t groups, int64_t norm,
                    double eps, int64_t ddof, float threshold, unsigned blocks, int order, float* adv, float* mean, float* std_out,
                    int32_t* wins, bool* live) {
  const cero::Options options{norm, eps, ddof, threshold};
  host::launch(blocks, cero::kThreads, order, [=] {
    if (wide_offsets != 0) {
      cero::group_kernel(rewards, static_cast<const int64_t*>(offsets), weights, groups, options, adv, mean, std_out, wins, live);
    } else {
      cero::group_kernel(rewards, static_cast<const int32_t*>(offsets), weights, groups, options, adv, mean, std_out, wins, live);
    }
  });
}

void emulate_tokens(const float* adv, const int32_t* edges, const int32_t* rollout, int64_t sequences, const bool* mask,
                    int64_t tokens, int order, float* out) {
  const auto blocks = static_cast<unsigned>((tokens + cero::kTile - 1) / cero::kTile);
  host::launch(blocks, cero::kThreads, order, [=] { cero::token_kernel(adv, edges, rollout, sequences, mask, tokens, out); });
}

}  // extern "C"

#if defined(CERO_MAIN)
// Random cases whose arrays end exactly where the kernels may read and write; run under the sanitizers.
#include <cmath>
#include <random>

int main() {
  std::mt19937 random(7);
  const auto below = [&](int n) { return static_cast<int>(random() % n); };
  int cases = 0;
  for (; cases < 60; ++cases) {
    const int most[] = {3, 40, 600, 1100};
    std::vector<int32_t> offsets{0};
    for (int g = below(30); g > 0; --g) offsets.push_back(offsets.back() + below(most[below(4)]));
    const int64_t groups = static_cast<int64_t>(offsets.size()) - 1, rollouts = offsets.back();
    std::vector<float> rewards(rollouts), adv(rollouts, NAN), mean(groups), std_out(groups);
    std::vector<int32_t> wins(groups);
    std::vector<char> live(groups);
    for (float& r : rewards) r = static_cast<float>(below(3));
    emulate_groups(rewards.data(), offsets.data(), 0, nullptr, groups, below(4), 1e-6, 1, 0.5f, 1 + below(5), 89, adv.data(),
                   mean.data(), std_out.data(), wins.data(), reinterpret_cast<bool*>(live.data()));
    for (float a : adv) {
      if (std::isnan(a)) return std::printf("an advantage was not written\n"), 1;
    }
    const int longest[] = {1, 3, 50, 9000};
    const int length = longest[below(4)];
    std::vector<int32_t> edges{below(5)};
    for (int64_t s = 0; s < rollouts; ++s) edges.push_back(edges.back() + below(length + 1));
    const int64_t tokens = edges.back() + below(6);
    if (tokens > 2000000) continue;
    const int shift = below(4);  // a mask that is a view starts anywhere
    std::vector<char> mask(tokens + shift, 1);
    std::vector<float> out(tokens, NAN);
    emulate_tokens(adv.data(), edges.data(), nullptr, rollouts, reinterpret_cast<bool*>(mask.data() + shift), tokens, 89, out.data());
    for (float value : out) {
      if (std::isnan(value)) return std::printf("a token was not written\n"), 1;
    }
  }
  std::printf("no access out of bounds in %d cases\n", cases);
}
#endif
