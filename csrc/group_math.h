// The arithmetic of the ragged group advantage, once, for host and device.
//
// Sums run over lanes (element i belongs to lane i % lanes) and are folded as a tree, in float64: 32 lanes, or 256 for a group
// above 512. A warp does exactly this with shuffles, a block with shared memory and the CPU with an array, so all give the same
// bits, whatever the thread count or the grid. Every lane starts at +0, so that -0 rewards do not tell the sides apart. Compile
// with contraction off (-ffp-contract=off, -fmad=false): a fused multiply-add on one side only would break that.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define CERO_HD __host__ __device__ __forceinline__
#else
#define CERO_HD inline
#endif

namespace cero {

constexpr int kLanes = 32;          // a warp
constexpr int kWideLanes = 256;     // a block
constexpr int64_t kWideAbove = 512; // rollouts; a larger group is summed over kWideLanes

enum Norm : int64_t { kCenter = 0, kStd = 1, kRloo = 2, kMaxRl = 3 };

struct Options {
  int64_t norm;
  double eps;
  int64_t ddof;
  float success_threshold;  // in the precision of the rewards: a reward of 0.1 is not above 0.1
};

// What one group needs to turn a reward into an advantage: (reward - mean) * scale.
struct GroupSummary {
  double mean;
  double std;
  double scale;
  bool live;     // at least two rollouts, and not all rewards equal
  bool has_nan;  // any NaN reward makes every advantage of this group NaN
};

// One division a group and none a rollout: scale is rounded in float64, far below the last bit of a float32 advantage.
CERO_HD double advantage_scale(int64_t size, double mean, double std, double weight, const Options& options) {
  double scale = 1.0;
  if (options.norm == kStd) {
    scale = 1.0 / (std + options.eps);
  } else if (options.norm == kRloo) {
    scale = static_cast<double>(size) / static_cast<double>(size - 1);
  } else if (options.norm == kMaxRl) {
    scale = mean > 0.0 ? 1.0 / mean : 0.0;
  }
  return scale * weight;
}

CERO_HD double mean_of(int64_t size, double sum) { return size > 0 ? sum / static_cast<double>(size) : 0.0; }

// squares: the sum of (reward - mean)^2; only looked at where the group is live.
CERO_HD GroupSummary summarize(int64_t size, double mean, double squares, bool differ, bool has_nan, double weight,
                               const Options& options) {
  GroupSummary group;
  group.mean = mean;
  group.has_nan = has_nan;
  group.live = size >= 2 && differ && !has_nan;
  // Equal rewards have no spread; the squares of rounding errors must not become one.
  group.std = has_nan ? mean : (group.live ? sqrt(squares / static_cast<double>(size - options.ddof)) : 0.0);
  group.scale = group.live ? advantage_scale(size, mean, group.std, weight, options) : 0.0;
  return group;
}

CERO_HD float advantage(float reward, const GroupSummary& group) {
  if (group.has_nan) return static_cast<float>(group.mean);  // NaN
  return group.live ? static_cast<float>((static_cast<double>(reward) - group.mean) * group.scale) : 0.0f;
}

// Index of the sequence that token t belongs to: the last s with cu_seqlens[s] <= t, for cu_seqlens[low] <= t.
CERO_HD int64_t find_sequence(const int32_t* cu_seqlens, int64_t low, int64_t high, int64_t token) {
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    if (cu_seqlens[middle] <= token) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

}  // namespace cero
