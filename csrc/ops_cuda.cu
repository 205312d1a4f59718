// CUDA kernels of the cero operators: one launch for the groups, one for the tokens, no atomics, no host synchronisation.
//
// Groups: a warp takes a group, a block takes one above 512; every sum has the order of group_math.h, so the result has the
// CPU's bits. Tokens: a block takes a fixed tile, finds the tile's sequences once, and writes 16 bytes a thread.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cuda_runtime.h>

#include <algorithm>
#include <optional>
#include <tuple>

#include "group_math.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int kThreads = cero::kWideLanes;
constexpr int kWarpsPerBlock = kThreads / cero::kLanes;
constexpr int kTokensPerThread = 4;
constexpr int kTile = kThreads * kTokensPerThread;
constexpr unsigned kFullWarp = 0xffffffffu;

// The threads that share one group, and what they reduce together. Every thread of a team gets every result.
struct WarpTeam {
  static constexpr int kSize = cero::kLanes;
  int rank;
  __device__ __forceinline__ double sum(double value) const {
#pragma unroll
    for (int step = kSize / 2; step > 0; step /= 2) value += __shfl_xor_sync(kFullWarp, value, step);
    return value;
  }
  __device__ __forceinline__ bool any(bool value) const { return __any_sync(kFullWarp, value) != 0; }
};

struct BlockTeam {
  static constexpr int kSize = cero::kWideLanes;
  int rank;
  double* lanes;  // shared memory, [kSize]
  __device__ __forceinline__ double sum(double value) const {
    lanes[rank] = value;
    for (int step = kSize / 2; step > 0; step /= 2) {
      __syncthreads();
      if (rank < step) lanes[rank] += lanes[rank + step];
    }
    __syncthreads();
    const double total = lanes[0];
    __syncthreads();  // nobody writes lanes again before everybody has read
    return total;
  }
  __device__ __forceinline__ bool any(bool value) const { return __syncthreads_or(value) != 0; }
};

template <typename Team>
__device__ __forceinline__ void run_group(const Team& team, const float* __restrict__ r, int64_t size, double weight,
                                          const cero::Options& options, float* __restrict__ adv, float* __restrict__ mean,
                                          float* __restrict__ std_out, int32_t* __restrict__ wins_out,
                                          bool* __restrict__ live_out) {
  const float head = size > 0 ? r[0] : 0.0f;
  double sum = 0.0, wins = 0.0;  // a count below 2^53 is exact in float64
  bool differ = false, has_nan = false;
  for (int64_t i = team.rank; i < size; i += Team::kSize) {
    const float x = r[i];
    sum += static_cast<double>(x);
    wins += x > options.success_threshold ? 1.0 : 0.0;
    differ |= x != head;
    has_nan |= x != x;
  }
  sum = team.sum(sum);
  wins = team.sum(wins);
  differ = team.any(differ);
  has_nan = team.any(has_nan);
  const double center = size > 0 ? sum / static_cast<double>(size) : 0.0;
  double squares = 0.0;
  for (int64_t i = team.rank; i < size; i += Team::kSize) {
    const double d = static_cast<double>(r[i]) - center;
    squares += d * d;
  }
  squares = team.sum(squares);
  const cero::GroupSummary group = cero::summarize(size, sum, squares, differ, has_nan, options.ddof);
  for (int64_t i = team.rank; i < size; i += Team::kSize) adv[i] = cero::advantage(r[i], group, weight, options);
  if (team.rank == 0) {
    *mean = static_cast<float>(group.mean);
    *std_out = static_cast<float>(group.std);
    *wins_out = static_cast<int32_t>(wins);
    *live_out = group.live;
  }
}

// A block owns kWarpsPerBlock neighbouring groups: first each warp does its own, then the block does the large ones together.
template <typename Offset>
__global__ void __launch_bounds__(kThreads) group_kernel(
    const float* __restrict__ rewards, const Offset* __restrict__ offsets, const float* __restrict__ weights, int64_t groups,
    cero::Options options, float* __restrict__ adv, float* __restrict__ mean, float* __restrict__ std_out,
    int32_t* __restrict__ wins_out, bool* __restrict__ live_out) {
  __shared__ double lanes[cero::kWideLanes];
  const int warp = threadIdx.x / cero::kLanes;
  const WarpTeam narrow{static_cast<int>(threadIdx.x % cero::kLanes)};
  const BlockTeam wide{static_cast<int>(threadIdx.x), lanes};
  const auto run = [&](const auto& team, int64_t g, int64_t first, int64_t size) {
    const double weight = weights != nullptr ? static_cast<double>(weights[g]) : 1.0;
    run_group(team, rewards + first, size, weight, options, adv + first, mean + g, std_out + g, wins_out + g, live_out + g);
  };
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kWarpsPerBlock;
  for (int64_t base = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock; base < groups; base += stride) {
    bool large = false;
    if (base + warp < groups) {  // the same for a whole warp
      const int64_t first = static_cast<int64_t>(offsets[base + warp]);
      const int64_t size = static_cast<int64_t>(offsets[base + warp + 1]) - first;
      large = size > cero::kWideAbove;
      if (!large) run(narrow, base + warp, first, size);
    }
    if (!__syncthreads_or(large)) continue;  // the same for the whole block
    const int64_t end = min(base + kWarpsPerBlock, groups);
    for (int64_t g = base; g < end; ++g) {
      const int64_t first = static_cast<int64_t>(offsets[g]);
      const int64_t size = static_cast<int64_t>(offsets[g + 1]) - first;
      if (size > cero::kWideAbove) run(wide, g, first, size);
    }
  }
}

__global__ void __launch_bounds__(kThreads) token_kernel(
    const float* __restrict__ adv, const int32_t* __restrict__ edges, const int32_t* __restrict__ rollout, int64_t sequences,
    const bool* __restrict__ mask, int64_t tokens, float* __restrict__ out) {
  __shared__ int64_t span[2];
  const int64_t tile = static_cast<int64_t>(blockIdx.x) * kTile;
  if (threadIdx.x < 2) {  // the tile's first and last sequence
    const int64_t token = threadIdx.x == 0 ? tile : min(tile + kTile, tokens) - 1;
    span[threadIdx.x] = sequences > 0 && edges[0] <= token ? cero::find_sequence(edges, 0, sequences + 1, token) : 0;
  }
  __syncthreads();
  const int64_t first = tile + static_cast<int64_t>(threadIdx.x) * kTokensPerThread;
  if (first >= tokens) return;
  const int64_t last = min(first + kTokensPerThread, tokens);
  float values[kTokensPerThread] = {0.0f, 0.0f, 0.0f, 0.0f};
  if (sequences > 0) {
    int64_t s = edges[span[0]] <= first ? cero::find_sequence(edges, span[0], min(span[1] + 1, sequences) + 1, first) : span[0];
    for (int64_t t = first; t < last; ++t) {
      while (s < sequences && edges[s + 1] <= t) ++s;
      if (s < sequences && edges[s] <= t && mask[t]) values[t - first] = adv[rollout != nullptr ? rollout[s] : s];
    }
  }
  if (last - first == kTokensPerThread) {
    *reinterpret_cast<float4*>(out + first) = make_float4(values[0], values[1], values[2], values[3]);
  } else {
    for (int64_t t = first; t < last; ++t) out[t] = values[t - first];
  }
}

cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device(), &stream) == 0, "no current CUDA stream");
  return static_cast<cudaStream_t>(stream);
}

void check_launch() {
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, "cero kernel launch failed: ", cudaGetErrorString(error));
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> group_advantage_cuda(
    const Tensor& rewards, const Tensor& group_offsets, const std::optional<Tensor>& group_weight, int64_t norm, double eps,
    int64_t ddof, double success_threshold) {
  const int64_t groups = group_offsets.numel() - 1;
  const cero::Options options{norm, eps, ddof, static_cast<float>(success_threshold)};
  // The caller's current device may be another one; a launch needs the device of its stream.
  const torch::stable::accelerator::DeviceGuard guard(rewards.get_device());
  Tensor adv = torch::stable::new_empty(rewards, {rewards.numel()});
  Tensor mean = torch::stable::new_empty(rewards, {groups});
  Tensor std_out = torch::stable::new_empty(rewards, {groups});
  Tensor wins = torch::stable::new_empty(rewards, {groups}, ScalarType::Int);
  Tensor live = torch::stable::new_empty(rewards, {groups}, ScalarType::Bool);
  if (groups == 0) return {adv, mean, std_out, wins, live};
  const float* weights = group_weight.has_value() ? group_weight->const_data_ptr<float>() : nullptr;
  const auto blocks = static_cast<unsigned>(std::min<int64_t>((groups + kWarpsPerBlock - 1) / kWarpsPerBlock, 1 << 16));
  const auto run = [&](const auto* offsets) {
    group_kernel<<<blocks, kThreads, 0, current_stream(rewards)>>>(
        rewards.const_data_ptr<float>(), offsets, weights, groups, options, adv.mutable_data_ptr<float>(),
        mean.mutable_data_ptr<float>(), std_out.mutable_data_ptr<float>(), wins.mutable_data_ptr<int32_t>(),
        live.mutable_data_ptr<bool>());
  };
  if (group_offsets.scalar_type() == ScalarType::Int) {
    run(group_offsets.const_data_ptr<int32_t>());
  } else {
    run(group_offsets.const_data_ptr<int64_t>());
  }
  check_launch();
  return {adv, mean, std_out, wins, live};
}

Tensor token_advantage_cuda(const Tensor& adv, const Tensor& cu_seqlens, const std::optional<Tensor>& seq_rollout,
                            const Tensor& loss_mask) {
  const int64_t tokens = loss_mask.numel();
  const torch::stable::accelerator::DeviceGuard guard(adv.get_device());
  Tensor out = torch::stable::new_empty(adv, {tokens});
  if (tokens == 0) return out;
  const int32_t* rollout = seq_rollout.has_value() ? seq_rollout->const_data_ptr<int32_t>() : nullptr;
  token_kernel<<<static_cast<unsigned>((tokens + kTile - 1) / kTile), kThreads, 0, current_stream(adv)>>>(
      adv.const_data_ptr<float>(), cu_seqlens.const_data_ptr<int32_t>(), rollout, cu_seqlens.numel() - 1,
      loss_mask.const_data_ptr<bool>(), tokens, out.mutable_data_ptr<float>());
  check_launch();
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cero, CUDA, m) {
  m.impl("group_advantage", TORCH_BOX(&group_advantage_cuda));
  m.impl("token_advantage", TORCH_BOX(&token_advantage_cuda));
}
