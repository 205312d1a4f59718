// A CUDA block on one host thread: what csrc/kernels.cuh uses of the language, so that its source runs without a GPU.
//
// A thread of the block is a fiber. It runs until it waits, at a barrier of the block or of its warp, or ends. A warp goes on when
// its 32 fibers have come to the same operation, the block when all that have not ended wait at its barrier; anything else is a
// deadlock on a GPU and aborts here. `order` decides which fiber goes first between two barriers: a result that depends on it
// is a data race. Blocks run one after the other; shared memory keeps the block before's content, as garbage would.
#pragma once

#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(threads)
#define __shared__ static

struct Index {
  unsigned x;
};
struct float4 {
  float x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline Index threadIdx, blockIdx, gridDim;

namespace host {

constexpr int kWarp = 32;
enum class Wait { kNone, kBlock, kShuffle, kVote };

struct Fiber {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(1 << 16);
  Wait wait = Wait::kNone;
  bool done = false;
  int phase[2];  // operations so far, of the warp and of the block: warps may have had different numbers of them
  uint64_t deposit[2][2];  // by kind, two buffers each: nobody is two operations ahead of a partner
};

inline std::vector<Fiber> fibers;
inline ucontext_t scheduler;
inline std::function<void()> body;
inline int current;

inline void run_body() {
  body();
  fibers[current].done = true;
}

inline void wait_at(Wait wait) {
  Fiber& me = fibers[current];
  me.wait = wait;
  swapcontext(&me.context, &scheduler);
}

// Leaves `value` for the partners, waits for them, and returns a reader of what thread i left.
inline auto exchange(Wait wait, uint64_t value) {
  Fiber& me = fibers[current];
  const int kind = wait == Wait::kBlock ? 1 : 0, slot = me.phase[kind]++ & 1;
  me.deposit[kind][slot] = value;
  wait_at(wait);
  return [=](int i) { return fibers[i].deposit[kind][slot]; };
}

inline bool release(int begin, int end, bool warp) {
  Wait seen = Wait::kNone;
  for (int i = begin; i < end; ++i) {
    const Fiber& fiber = fibers[i];
    if (fiber.done && !warp) continue;
    if (fiber.done || fiber.wait == Wait::kNone || (warp == (fiber.wait == Wait::kBlock))) return false;
    if (seen != Wait::kNone && seen != fiber.wait) return false;
    seen = fiber.wait;
  }
  for (int i = begin; i < end; ++i) fibers[i].wait = Wait::kNone;
  return seen != Wait::kNone;
}

// order: 0 ascending, 1 descending, else a stride through the threads (any odd number).
inline void run_block(int threads, int order) {
  for (int i = 0; i < threads; ++i) {
    Fiber& fiber = fibers[i];
    fiber.done = false;
    fiber.wait = Wait::kNone;
    fiber.phase[0] = fiber.phase[1] = 0;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = fiber.stack.size();
    fiber.context.uc_link = &scheduler;
    makecontext(&fiber.context, run_body, 0);
  }
  for (bool progress = true; progress;) {
    progress = false;
    for (int turn = 0; turn < threads; ++turn) {
      const int i = order == 0 ? turn : order == 1 ? threads - 1 - turn : turn * order % threads;
      if (fibers[i].done || fibers[i].wait != Wait::kNone) continue;
      current = i;
      threadIdx.x = static_cast<unsigned>(i);
      swapcontext(&scheduler, &fibers[i].context);
      progress = true;
    }
    for (int warp = 0; warp < threads; warp += kWarp) progress |= release(warp, warp + kWarp, true);
    progress |= release(0, threads, false);
  }
  for (int i = 0; i < threads; ++i) {
    if (fibers[i].done) continue;
    std::fprintf(stderr, "block %u: thread %d waits for threads that never come\n", blockIdx.x, i);
    std::abort();
  }
}

inline void launch(unsigned blocks, int threads, int order, std::function<void()> kernel) {
  fibers.resize(threads);
  body = std::move(kernel);
  gridDim.x = blocks;
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) run_block(threads, order);
}

}  // namespace host

inline void __syncthreads() { host::wait_at(host::Wait::kBlock); }

inline int __syncthreads_or(int value) {
  const auto left_by = host::exchange(host::Wait::kBlock, value != 0);
  int any = 0;
  for (size_t i = 0; i < host::fibers.size(); ++i) any |= static_cast<int>(left_by(static_cast<int>(i)));
  return any;
}

inline double __shfl_xor_sync(unsigned, double value, int lanes) {
  uint64_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const int partner = host::current ^ lanes;
  bits = host::exchange(host::Wait::kShuffle, bits)(partner);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline unsigned __ballot_sync(unsigned, bool value) {
  const int warp = host::current / host::kWarp * host::kWarp;
  const auto left_by = host::exchange(host::Wait::kVote, value);
  unsigned votes = 0;
  for (int lane = 0; lane < host::kWarp; ++lane) votes |= static_cast<unsigned>(left_by(warp + lane)) << lane;
  return votes;
}

inline int __any_sync(unsigned mask, bool value) { return __ballot_sync(mask, value) != 0; }
inline int __popc(unsigned value) { return __builtin_popcount(value); }
