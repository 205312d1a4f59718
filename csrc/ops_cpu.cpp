// Schemas of the cero operators and their CPU kernels, on the LibTorch Stable ABI (one binary for every torch >= 2.10).
//
// Shapes and meaning are documented in cero_rl/ops/advantage.py, which is also where arguments are checked.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <tuple>

#include "group_math.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Work of one thread at least; below it starting a second thread costs more than it saves.
constexpr int64_t kRolloutGrain = 1 << 14;
constexpr int64_t kTokenGrain = 1 << 15;

// Sum of term(i) for i in [0, size), in the lane order of group_math.h. Lanes beyond the group's size would hold +0, which changes
// no sum, so a small group may be summed over fewer lanes: W is a power of two, at least min(size, kLanes).
template <int W, typename Term>
double lane_sum(int64_t size, Term term) {
  double lanes[W] = {};
  int64_t base = 0;
  for (; base + W <= size; base += W) {
    for (int lane = 0; lane < W; ++lane) lanes[lane] += term(base + lane);
  }
  for (int lane = 0; base + lane < size; ++lane) lanes[lane] += term(base + lane);
  for (int step = W / 2; step > 0; step /= 2) {
    for (int lane = 0; lane < step; ++lane) lanes[lane] += lanes[lane + step];
  }
  return lanes[0];
}

struct GroupCounts {
  cero::GroupSummary summary;
  int32_t wins;
};

template <int W>
GroupCounts run_group(const float* __restrict__ r, int64_t size, double weight, const cero::Options& options,
                      float* __restrict__ adv) {
  const float head = size > 0 ? r[0] : 0.0f, threshold = options.success_threshold;
  int32_t wins = 0, differ = 0, nans = 0;  // counts, not flags: these vectorise
  for (int64_t i = 0; i < size; ++i) {
    differ += r[i] != head;
    nans += r[i] != r[i];
    wins += r[i] > threshold;
  }
  const double mean = cero::mean_of(size, lane_sum<W>(size, [=](int64_t i) { return static_cast<double>(r[i]); }));
  double squares = 0.0;
  if (differ != 0 && nans == 0) {  // a dead group's are not looked at
    squares = lane_sum<W>(size, [=](int64_t i) {
      const double d = static_cast<double>(r[i]) - mean;
      return d * d;
    });
  }
  const cero::GroupSummary group = cero::summarize(size, mean, squares, differ != 0, nans != 0, weight, options);
  for (int64_t i = 0; i < size; ++i) adv[i] = cero::advantage(r[i], group);
  return {group, wins};
}

GroupCounts run_group_of_any_size(const float* r, int64_t size, double weight, const cero::Options& options, float* adv) {
  if (size <= 1) return run_group<1>(r, size, weight, options, adv);
  if (size <= 2) return run_group<2>(r, size, weight, options, adv);
  if (size <= 4) return run_group<4>(r, size, weight, options, adv);
  if (size <= 8) return run_group<8>(r, size, weight, options, adv);
  if (size <= 16) return run_group<16>(r, size, weight, options, adv);
  if (size <= cero::kWideAbove) return run_group<cero::kLanes>(r, size, weight, options, adv);
  return run_group<cero::kWideLanes>(r, size, weight, options, adv);
}

template <typename Offset>
void run_groups(const float* rewards, const Offset* offsets, const float* weights, int64_t groups, const cero::Options& options,
                float* adv, float* mean, float* std_out, int32_t* wins_out, bool* live_out) {
  if (groups == 0) return;
  const int64_t rollouts = std::max(static_cast<int64_t>(offsets[groups]), groups);  // an empty group is work, too
  const int64_t grain = std::max<int64_t>(1, groups * kRolloutGrain / rollouts);
  torch::stable::parallel_for(0, groups, grain, [&](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; ++g) {
      const int64_t first = static_cast<int64_t>(offsets[g]);
      const int64_t size = static_cast<int64_t>(offsets[g + 1]) - first;
      const double weight = weights != nullptr ? static_cast<double>(weights[g]) : 1.0;
      const GroupCounts group = run_group_of_any_size(rewards + first, size, weight, options, adv + first);
      mean[g] = static_cast<float>(group.summary.mean);
      std_out[g] = static_cast<float>(group.summary.std);
      wins_out[g] = group.wins;
      live_out[g] = group.summary.live;
    }
  });
}

// out[t] = mask[t] ? value : 0. Bytes in and bits out, because compilers vectorise that.
void fill_masked(float* __restrict__ out, const uint8_t* __restrict__ mask, int64_t count, float value) {
  for (int64_t t = 0; t < count; ++t) out[t] = mask[t] != 0 ? value : 0.0f;
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
  const float* adv_of = adv.const_data_ptr<float>();
  const int32_t* edges = cu_seqlens.const_data_ptr<int32_t>();
  const int32_t* rollout = seq_rollout.has_value() ? seq_rollout->const_data_ptr<int32_t>() : nullptr;
  const auto* mask = reinterpret_cast<const uint8_t*>(loss_mask.const_data_ptr<bool>());
  float* result = out.mutable_data_ptr<float>();
  torch::stable::parallel_for(0, tokens, kTokenGrain, [=](int64_t begin, int64_t end) {
    int64_t t = std::clamp<int64_t>(edges[0], begin, end);
    std::fill(result + begin, result + t, 0.0f);  // tokens before the first sequence
    if (t < end) {
      for (int64_t s = cero::find_sequence(edges, 0, sequences + 1, t); s < sequences && t < end; ++s) {
        const int64_t stop = std::min<int64_t>(edges[s + 1], end);
        fill_masked(result + t, mask + t, stop - t, adv_of[rollout != nullptr ? rollout[s] : s]);
        t = stop;
      }
    }
    std::fill(result + t, result + end, 0.0f);  // and after the last
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> group_advantage_tokens_cpu(
    const Tensor& rewards, const Tensor& group_offsets, const std::optional<Tensor>& group_weight, const Tensor& cu_seqlens,
    const std::optional<Tensor>& seq_rollout, const Tensor& loss_mask, int64_t norm, double eps, int64_t ddof,
    double success_threshold) {
  auto [adv, mean, std_out, wins, live] =
      group_advantage_cpu(rewards, group_offsets, group_weight, norm, eps, ddof, success_threshold);
  Tensor token_adv = token_advantage_cpu(adv, cu_seqlens, seq_rollout, loss_mask);
  return {adv, token_adv, mean, std_out, wins, live};
}

// What the argument checks want to know about offsets and indices, in one pass: (lowest, highest, smallest step, largest step).
template <typename Integer>
std::tuple<int64_t, int64_t, int64_t, int64_t> range_of(const Integer* values, int64_t count) {
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  int64_t low = kMost, high = -kMost, step_low = kMost, step_high = -kMost;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t value = values[i];
    low = std::min(low, value);
    high = std::max(high, value);
    if (i + 1 < count) {
      const int64_t step = static_cast<int64_t>(values[i + 1]) - value;
      step_low = std::min(step_low, step);
      step_high = std::max(step_high, step);
    }
  }
  return {low, high, step_low, step_high};
}

std::tuple<int64_t, int64_t, int64_t, int64_t> integer_range_cpu(const Tensor& values) {
  const int64_t count = values.numel();
  return values.scalar_type() == ScalarType::Int ? range_of(values.const_data_ptr<int32_t>(), count)
                                                 : range_of(values.const_data_ptr<int64_t>(), count);
}

}  // namespace

STABLE_TORCH_LIBRARY(cero, m) {
  m.def(
      "group_advantage(Tensor rewards, Tensor group_offsets, Tensor? group_weight, int norm, float eps, int ddof, "
      "float success_threshold) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("token_advantage(Tensor adv, Tensor cu_seqlens, Tensor? seq_rollout, Tensor loss_mask) -> Tensor");
  m.def(
      "group_advantage_tokens(Tensor rewards, Tensor group_offsets, Tensor? group_weight, Tensor cu_seqlens, "
      "Tensor? seq_rollout, Tensor loss_mask, int norm, float eps, int ddof, float success_threshold) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("integer_range(Tensor values) -> (int, int, int, int)");
}

STABLE_TORCH_LIBRARY_IMPL(cero, CPU, m) {
  m.impl("group_advantage", TORCH_BOX(&group_advantage_cpu));
  m.impl("token_advantage", TORCH_BOX(&token_advantage_cpu));
  m.impl("group_advantage_tokens", TORCH_BOX(&group_advantage_tokens_cpu));
  m.impl("integer_range", TORCH_BOX(&integer_range_cpu));
}
