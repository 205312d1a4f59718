// Schemas of the cero operators and their CPU kernels, on the LibTorch Stable ABI (one binary for every torch >= 2.10).
//
// Shapes and meaning are documented in cero_rl/ops/advantage.py, which is also where arguments are checked.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <optional>
#include <tuple>

#include "group_math.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kGroupGrain = 128;
constexpr int64_t kTokenTile = 1 << 15;

// Sum of term(i) for i in [0, size), in the lane order of group_math.h.
template <typename Term>
double lane_sum(int64_t size, Term term) {
  const int64_t most = size > cero::kWideAbove ? cero::kWideLanes : cero::kLanes;
  int64_t width = 1;  // lanes beyond the group's size hold +0, which changes no sum
  while (width < size && width < most) width *= 2;
  double lanes[cero::kWideLanes];
  std::fill(lanes, lanes + width, 0.0);
  for (int64_t base = 0; base < size; base += width) {
    const int64_t count = std::min<int64_t>(width, size - base);
    for (int64_t lane = 0; lane < count; ++lane) lanes[lane] += term(base + lane);
  }
  for (int64_t step = width / 2; step > 0; step /= 2) {
    for (int64_t lane = 0; lane < step; ++lane) lanes[lane] += lanes[lane + step];
  }
  return lanes[0];
}

template <typename Offset>
void run_groups(const float* rewards, const Offset* offsets, const float* weights, int64_t groups, const cero::Options& options,
                float* adv, float* mean, float* std_out, int32_t* wins_out, bool* live_out) {
  torch::stable::parallel_for(0, groups, kGroupGrain, [&](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; ++g) {
      const int64_t first = static_cast<int64_t>(offsets[g]);
      const int64_t size = static_cast<int64_t>(offsets[g + 1]) - first;
      const float* r = rewards + first;
      bool differ = false, has_nan = false;
      int32_t wins = 0;
      for (int64_t i = 0; i < size; ++i) {
        differ |= r[i] != r[0];
        has_nan |= r[i] != r[i];
        wins += r[i] > options.success_threshold;
      }
      const double sum = lane_sum(size, [&](int64_t i) { return static_cast<double>(r[i]); });
      const double center = size > 0 ? sum / static_cast<double>(size) : 0.0;
      const double squares = lane_sum(size, [&](int64_t i) {
        const double d = static_cast<double>(r[i]) - center;
        return d * d;
      });
      const cero::GroupSummary group = cero::summarize(size, sum, squares, differ, has_nan, options.ddof);
      const double weight = weights != nullptr ? static_cast<double>(weights[g]) : 1.0;
      for (int64_t i = 0; i < size; ++i) adv[first + i] = cero::advantage(r[i], group, weight, options);
      mean[g] = static_cast<float>(group.mean);
      std_out[g] = static_cast<float>(group.std);
      wins_out[g] = wins;
      live_out[g] = group.live;
    }
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> group_advantage_cpu(
    const Tensor& rewards, const Tensor& group_offsets, const std::optional<Tensor>& group_weight, int64_t norm, double eps,
    int64_t ddof, double success_threshold) {
  const int64_t groups = group_offsets.numel() - 1;
  const cero::Options options{norm, eps, ddof, static_cast<float>(success_threshold)};
  Tensor adv = torch::stable::new_empty(rewards, {rewards.numel()});
  Tensor mean = torch::stable::new_empty(rewards, {groups});
  Tensor std_out = torch::stable::new_empty(rewards, {groups});
  Tensor wins = torch::stable::new_empty(rewards, {groups}, ScalarType::Int);
  Tensor live = torch::stable::new_empty(rewards, {groups}, ScalarType::Bool);
  const float* weights = group_weight.has_value() ? group_weight->const_data_ptr<float>() : nullptr;
  const auto run = [&](const auto* offsets) {
    run_groups(rewards.const_data_ptr<float>(), offsets, weights, groups, options, adv.mutable_data_ptr<float>(),
               mean.mutable_data_ptr<float>(), std_out.mutable_data_ptr<float>(), wins.mutable_data_ptr<int32_t>(),
               live.mutable_data_ptr<bool>());
  };
  if (group_offsets.scalar_type() == ScalarType::Int) {
    run(group_offsets.const_data_ptr<int32_t>());
  } else {
    run(group_offsets.const_data_ptr<int64_t>());
  }
  return {adv, mean, std_out, wins, live};
}

Tensor token_advantage_cpu(const Tensor& adv, const Tensor& cu_seqlens, const std::optional<Tensor>& seq_rollout,
                           const Tensor& loss_mask) {
  const int64_t tokens = loss_mask.numel();
  const int64_t sequences = cu_seqlens.numel() - 1;
  Tensor out = torch::stable::new_empty(adv, {tokens});
  const float* a = adv.const_data_ptr<float>();
  const int32_t* edges = cu_seqlens.const_data_ptr<int32_t>();
  const int32_t* rollout = seq_rollout.has_value() ? seq_rollout->const_data_ptr<int32_t>() : nullptr;
  const bool* mask = loss_mask.const_data_ptr<bool>();
  float* result = out.mutable_data_ptr<float>();
  torch::stable::parallel_for(0, tokens, kTokenTile, [&](int64_t begin, int64_t end) {
    int64_t t = begin;
    for (; t < end && t < edges[0]; ++t) result[t] = 0.0f;  // tokens before the first sequence
    if (sequences > 0 && t < end) {
      int64_t s = cero::find_sequence(edges, 0, sequences + 1, t);
      for (; s < sequences && t < end; ++s) {
        const float value = a[rollout != nullptr ? rollout[s] : s];
        const int64_t stop = std::min<int64_t>(edges[s + 1], end);
        for (; t < stop; ++t) result[t] = mask[t] ? value : 0.0f;
      }
    }
    for (; t < end; ++t) result[t] = 0.0f;  // and after the last
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY(cero, m) {
  m.def(
      "group_advantage(Tensor rewards, Tensor group_offsets, Tensor? group_weight, int norm, float eps, int ddof, "
      "float success_threshold) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("token_advantage(Tensor adv, Tensor cu_seqlens, Tensor? seq_rollout, Tensor loss_mask) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(cero, CPU, m) {
  m.impl("group_advantage", TORCH_BOX(&group_advantage_cpu));
  m.impl("token_advantage", TORCH_BOX(&token_advantage_cpu));
}
