// The CUDA kernels, without torch: ops_cuda.cu launches them, tests/ops/emulate.cpp runs this same source on a host.
//
// Groups: a warp takes a group, a block takes one above 512; every sum has the order of group_math.h, so the result has the
// CPU's bits. Tokens: a block takes a fixed tile, finds the tile's sequences once, and writes 16 bytes a thread and round.
#pragma once

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#endif

#include "group_math.h"

namespace cero {

constexpr int kThreads = kWideLanes;
constexpr int kWarpsPerBlock = kThreads / kLanes;
constexpr int kVector = 4;                          // tokens of one 16-byte store
constexpr int kRounds = 4;                          // stores of a thread
constexpr int kRoundTokens = kThreads * kVector;    // neighbouring threads write neighbouring bytes
constexpr int kTile = kRoundTokens * kRounds;       // tokens of a block: enough to pay for its search
constexpr int kSpan = 1024;                         // sequences of a tile that are kept in shared memory
constexpr unsigned kFullWarp = 0xffffffffu;

// The threads that share one group, and what they reduce together. Every thread of a team gets every result.
struct WarpTeam {
  static constexpr int kSize = kLanes;
  int rank;
  __device__ __forceinline__ double sum(double value) const {
#pragma unroll
    for (int step = kSize / 2; step > 0; step /= 2) value += __shfl_xor_sync(kFullWarp, value, step);
    return value;
  }
  __device__ __forceinline__ bool any(bool value) const { return __any_sync(kFullWarp, value) != 0; }
};

struct BlockTeam {
  static constexpr int kSize = kWideLanes;
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
                                          const Options& options, float* __restrict__ adv, float* __restrict__ mean_out,
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
  const double mean = mean_of(size, sum);
  double squares = 0.0;
  for (int64_t i = team.rank; i < size; i += Team::kSize) {
    const double d = static_cast<double>(r[i]) - mean;
    squares += d * d;
  }
  squares = team.sum(squares);
  const GroupSummary group = summarize(size, mean, squares, differ, has_nan, weight, options);
  for (int64_t i = team.rank; i < size; i += Team::kSize) adv[i] = advantage(r[i], group);
  if (team.rank == 0) {
    *mean_out = static_cast<float>(group.mean);
    *std_out = static_cast<float>(group.std);
    *wins_out = static_cast<int32_t>(wins);
    *live_out = group.live;
  }
}

// A block owns kWarpsPerBlock neighbouring groups: first each warp does its own, then the block does the large ones together.
template <typename Offset>
__global__ void __launch_bounds__(kThreads) group_kernel(
    const float* __restrict__ rewards, const Offset* __restrict__ offsets, const float* __restrict__ weights, int64_t groups,
    Options options, float* __restrict__ adv, float* __restrict__ mean, float* __restrict__ std_out,
    int32_t* __restrict__ wins_out, bool* __restrict__ live_out) {
  __shared__ double lanes[kWideLanes];
  const int warp = threadIdx.x / kLanes;
  const WarpTeam narrow{static_cast<int>(threadIdx.x % kLanes)};
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
      large = size > kWideAbove;
      if (!large) run(narrow, base + warp, first, size);
    }
    if (!__syncthreads_or(large)) continue;  // the same for the whole block
    const int64_t end = base + kWarpsPerBlock < groups ? base + kWarpsPerBlock : groups;
    for (int64_t g = base; g < end; ++g) {
      const int64_t first = static_cast<int64_t>(offsets[g]);
      const int64_t size = static_cast<int64_t>(offsets[g + 1]) - first;
      if (size > kWideAbove) run(wide, g, first, size);
    }
  }
}

// find_sequence by a warp: 32 probes a step instead of one, because each step waits for memory. 64k sequences take 4 steps.
__device__ __forceinline__ int64_t find_sequence_warp(const int32_t* __restrict__ edges, int64_t sequences, int64_t token,
                                                      int lane) {
  if (edges[0] > token) return 0;
  int64_t low = 0, high = sequences + 1;
  while (high - low > 1) {
    const int64_t step = (high - low + kLanes - 1) / kLanes;
    const int64_t probe = low + (lane + 1) * step;
    const unsigned below = __ballot_sync(kFullWarp, probe < high && edges[probe] <= token);
    low += __popc(below) * step;
    high = low + step < high ? low + step : high;
  }
  return low;
}

// The kVector tokens from `first` on. The tile's sequences are edges[k] and values[k], k in [0, count). k: a sequence at or before
// the first token, from the round before; moves on.
__device__ __forceinline__ void write_tokens(const int32_t* edges, const float* values, int count, int& k, int64_t first,
                                             int64_t tokens, uint32_t mask, float* __restrict__ out) {
  int high = count;
  while (high - k > 1) {  // the last k with edges[k] <= first
    const int middle = k + (high - k) / 2;
    if (edges[middle] <= first) {
      k = middle;
    } else {
      high = middle;
    }
  }
  float four[kVector];
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    while (k + 1 < count && edges[k + 1] <= first + i) ++k;
    const bool inside = (mask >> (8 * i) & 0xffu) != 0 && edges[k] <= first + i;
    four[i] = inside ? values[k] : 0.0f;
  }
  if (first + kVector <= tokens) {
    *reinterpret_cast<float4*>(out + first) = make_float4(four[0], four[1], four[2], four[3]);
  } else {
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      if (first + i < tokens) out[first + i] = four[i];
    }
  }
}

__global__ void __launch_bounds__(kThreads) token_kernel(
    const float* __restrict__ adv, const int32_t* __restrict__ edges, const int32_t* __restrict__ rollout, int64_t sequences,
    const bool* __restrict__ mask, int64_t tokens, float* __restrict__ out) {
  __shared__ int64_t span[2];  // the tile's first and last sequence; `sequences` stands for the tokens after the last one
  __shared__ int32_t edge_cache[kSpan];
  __shared__ float value_cache[kSpan];
  const int64_t tile = static_cast<int64_t>(blockIdx.x) * kTile;
  const int64_t start = tile + static_cast<int64_t>(threadIdx.x) * kVector;

  // The mask does not depend on the search, so its loads go first. A view may start at an address that no 4 divides.
  const bool aligned = reinterpret_cast<uintptr_t>(mask) % kVector == 0;
  uint32_t masks[kRounds];
#pragma unroll
  for (int round = 0; round < kRounds; ++round) {
    const int64_t first = start + round * kRoundTokens;
    masks[round] = 0;
    if (aligned && first + kVector <= tokens) {
      masks[round] = *reinterpret_cast<const uint32_t*>(mask + first);
    } else {
      for (int i = 0; i < kVector && first + i < tokens; ++i) masks[round] |= static_cast<uint32_t>(mask[first + i]) << (8 * i);
    }
  }

  const int warp = threadIdx.x / kLanes;
  if (warp < 2) {
    const int64_t token = warp == 0 ? tile : (tile + kTile < tokens ? tile + kTile : tokens) - 1;
    const int64_t found = find_sequence_warp(edges, sequences, token, threadIdx.x % kLanes);
    if (threadIdx.x % kLanes == 0) span[warp] = found;
  }
  __syncthreads();
  const int64_t low = span[0];
  const int count = static_cast<int>(span[1] - low) + 1;
  const auto value_of = [&](int64_t s) { return s < sequences ? adv[rollout != nullptr ? rollout[s] : s] : 0.0f; };
  if (count > kSpan) {  // under four tokens a sequence: every thread searches for itself
    const int64_t end = tile + kTile < tokens ? tile + kTile : tokens;
    for (int64_t token = tile + threadIdx.x; token < end; token += kThreads) {
      const int64_t s = find_sequence(edges, low, low + count, token);
      out[token] = mask[token] && edges[s] <= token ? value_of(s) : 0.0f;
    }
    return;
  }
  for (int k = static_cast<int>(threadIdx.x); k < count; k += kThreads) {
    edge_cache[k] = edges[low + k];
    value_cache[k] = value_of(low + k);
  }
  __syncthreads();
  int k = 0;
#pragma unroll
  for (int round = 0; round < kRounds; ++round) {
    const int64_t first = start + round * kRoundTokens;
    if (first < tokens) write_tokens(edge_cache, value_cache, count, k, first, tokens, masks[round], out);
  }
}

}  // namespace cero
