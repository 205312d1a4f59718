// CUDA side of the cero operators: one launch for the groups, one for the tokens, no host synchronisation. The kernels are in
// kernels.cuh; this file allocates, picks the grid and the stream, and registers.
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

#include "kernels.cuh"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

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
  const auto blocks = static_cast<unsigned>(std::min<int64_t>((groups + cero::kWarpsPerBlock - 1) / cero::kWarpsPerBlock, 1 << 16));
  const auto run = [&](const auto* offsets) {
    cero::group_kernel<<<blocks, cero::kThreads, 0, current_stream(rewards)>>>(
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
  const auto blocks = static_cast<unsigned>((tokens + cero::kTile - 1) / cero::kTile);
  cero::token_kernel<<<blocks, cero::kThreads, 0, current_stream(adv)>>>(
      adv.const_data_ptr<float>(), cu_seqlens.const_data_ptr<int32_t>(), rollout, cu_seqlens.numel() - 1,
      loss_mask.const_data_ptr<bool>(), tokens, out.mutable_data_ptr<float>());
  check_launch();
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> group_advantage_tokens_cuda(
    const Tensor& rewards, const Tensor& group_offsets, const std::optional<Tensor>& group_weight, const Tensor& cu_seqlens,
    const std::optional<Tensor>& seq_rollout, const Tensor& loss_mask, int64_t norm, double eps, int64_t ddof,
    double success_threshold) {
  auto [adv, mean, std_out, wins, live] =
      group_advantage_cuda(rewards, group_offsets, group_weight, norm, eps, ddof, success_threshold);
  Tensor token_adv = token_advantage_cuda(adv, cu_seqlens, seq_rollout, loss_mask);
  return {adv, token_adv, mean, std_out, wins, live};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cero, CUDA, m) {
  m.impl("group_advantage", TORCH_BOX(&group_advantage_cuda));
  m.impl("token_advantage", TORCH_BOX(&token_advantage_cuda));
  m.impl("group_advantage_tokens", TORCH_BOX(&group_advantage_tokens_cuda));
}
