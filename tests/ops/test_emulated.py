"""The CUDA kernels' own source (csrc/kernels.cuh) on a host, thread by thread: the CPU's bits
for every grid and thread order.

A GPU test would say more, but this one runs everywhere. It sees wrong indices (with the address
sanitizer), data races (results that depend on the order of threads), barriers that not every
thread reaches, and any difference in arithmetic.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from cero_rl.ops import group_advantage, token_advantage

HERE = Path(__file__).parent
NORMS = ["center", "std", "rloo", "maxrl"]
ORDERS = [0, 1, 89]  # ascending, descending, a stride of 89 threads


def compile_emulator(out: Path, *flags: str) -> Path:
    compiler = shutil.which("g++")
    assert compiler, "g++ is missing; the package itself cannot be built without it"
    command = [
        compiler,
        "-O1",
        "-std=c++17",
        "-ffp-contract=off",
        "-Wall",
        "-Wno-unknown-pragmas",
        *flags,
    ]
    done = subprocess.run(
        [*command, str(HERE / "emulate.cpp"), "-o", str(out)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return out


@pytest.fixture(scope="module")
def emulator(tmp_path_factory):
    return ctypes.CDLL(
        str(
            compile_emulator(tmp_path_factory.mktemp("emulator") / "emulate.so", "-shared", "-fPIC")
        )
    )


def pointer(tensor: torch.Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def groups_on(library, rewards, offsets, weight, norm, ddof, blocks, order):
    groups = offsets.numel() - 1
    out = [
        torch.full((n,), 7, dtype=d)
        for n, d in zip((rewards.numel(), groups, groups, groups, groups), TYPES)
    ]
    library.emulate_groups(
        pointer(rewards),
        pointer(offsets),
        offsets.dtype == torch.int64,
        pointer(weight),
        ctypes.c_int64(groups),
        ctypes.c_int64(NORMS.index(norm)),
        ctypes.c_double(1e-6),
        ctypes.c_int64(ddof),
        ctypes.c_float(0.5),
        ctypes.c_uint(blocks),
        order,
        *map(pointer, out),
    )
    return out


TYPES = (torch.float32, torch.float32, torch.float32, torch.int32, torch.bool)


def tokens_on(library, adv, cu, rollout, mask, order):
    out = torch.full((mask.numel(),), 7.0)
    library.emulate_tokens(
        pointer(adv),
        pointer(cu),
        pointer(rollout),
        ctypes.c_int64(cu.numel() - 1),
        pointer(mask),
        ctypes.c_int64(mask.numel()),
        order,
        pointer(out),
    )
    return out


def assert_same_bits(got, wanted):
    for a, b in zip(got, wanted, strict=True):
        if a.is_floating_point():  # the payload of a NaN is nobody's promise
            assert torch.equal(a.isnan(), b.isnan())
            a, b = (x.nan_to_num(nan=0.0).view(torch.int32) for x in (a, b))
        assert torch.equal(a, b)


def ragged_case(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.permutation(
        [0, 1, 1, 2, 3, 31, 32, 33, 64, 511, 512, 513, 513, 1024, 1025, 0, 8, 8, 16]
    )
    rewards = torch.tensor(
        rng.choice([0.1, 0.2, 1 / 3, 0.9, -0.0], sizes.sum()) + seed * 1e3 * rng.random(),
        dtype=torch.float32,
    )
    edges = np.cumsum([0, *sizes])
    rewards[edges[3] : edges[4]] = 0.1  # a group without spread
    if len(rewards[edges[5] : edges[6]]):
        rewards[int(edges[5])] = torch.nan
    weight = torch.tensor(rng.random(len(sizes)) * 3, dtype=torch.float32)
    return rewards, torch.tensor(edges, dtype=[torch.int32, torch.int64][seed % 2]), weight


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("blocks", [1, 2, 3, 40])
def test_groups_have_the_bits_of_the_cpu(emulator, norm, order, blocks):
    for seed in range(4):
        rewards, offsets, weight = ragged_case(seed)
        chosen = weight if seed % 2 else None
        wanted = group_advantage(rewards, offsets, norm=norm, ddof=seed // 2, group_weight=chosen)
        assert_same_bits(
            groups_on(emulator, rewards, offsets, chosen, norm, seed // 2, blocks, order), wanted
        )


def packed_case(seed, sequences, tokens, low, high):
    """Sequences of low..high tokens, some tokens before the first and after the last, a mask at
    an odd address, rollouts permuted."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(low, high + 1, sequences)
    cu = torch.tensor(int(rng.integers(0, 3)) + np.cumsum([0, *lengths]), dtype=torch.int32)
    cu = cu.clamp(max=tokens)
    # a view: its address is seed modulo 4
    mask = torch.tensor(rng.random(tokens + 3) < 0.7)[seed % 4 :][:tokens]
    adv = torch.tensor(rng.normal(size=max(sequences, 1)), dtype=torch.float32)
    rollout = (
        torch.tensor(rng.permutation(max(sequences, 1))[:sequences], dtype=torch.int32)
        if seed % 3
        else None
    )
    return adv, cu, rollout, mask


@pytest.mark.parametrize(
    ("sequences", "tokens", "low", "high"),
    [
        (0, 5000, 0, 0),
        (1, 1, 1, 1),
        (1, 4096, 5000, 5000),
        (3, 4097, 0, 3000),
        (40, 9001, 0, 500),
        (33, 8192, 100, 300),
        (1023, 4096, 4, 4),
        (1025, 4099, 3, 4),
        (3000, 4100, 0, 2),
        (9000, 6000, 0, 1),
        (5000, 4096, 1, 1),
    ],
)
@pytest.mark.parametrize("order", ORDERS)
def test_tokens_have_the_bits_of_the_cpu(emulator, sequences, tokens, low, high, order):
    for seed in range(6):
        adv, cu, rollout, mask = packed_case(seed, sequences, tokens, low, high)
        wanted = token_advantage(adv, cu, mask, seq_rollout=rollout)
        assert_same_bits([tokens_on(emulator, adv, cu, rollout, mask, order)], [wanted])


def test_no_access_is_out_of_bounds_or_misaligned(tmp_path):
    """The same cases in a program with the address and undefined-behaviour sanitizers, whose
    arrays end where the data does."""
    program = compile_emulator(
        tmp_path / "emulate",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
        "-g",
        "-DCERO_MAIN",
    )
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("no access out of bounds"), done.stdout


def test_a_race_and_a_lost_thread_would_be_seen(tmp_path):
    """The emulator itself: a kernel without its barrier gives other results in another order, a
    divergent barrier aborts."""
    source = tmp_path / "faults.cpp"
    source.write_text(f"""
#include "{HERE / "cuda_on_host.h"}"
#include <cstdio>
static int slots[64], out[64];
static void neighbours(bool barrier) {{
  slots[threadIdx.x] = threadIdx.x + 1;
  if (barrier) __syncthreads();
  out[threadIdx.x] = slots[(threadIdx.x + 1) % 64];
}}
static int weigh(bool barrier, int order) {{
  std::memset(slots, 0, sizeof slots);
  host::launch(1, 64, order, [=] {{ neighbours(barrier); }});
  int sum = 0;
  for (int i = 0; i < 64; ++i) sum += out[i] * (i + 1);
  return sum;
}}
int main() {{
  std::printf("%d %d\\n", weigh(true, 0) == weigh(true, 1), weigh(false, 0) == weigh(false, 1));
  std::fflush(stdout);
  host::launch(1, 64, 0, [] {{
    if (threadIdx.x != 40) __any_sync(~0u, true);  // one lane of the second warp never comes
  }});
}}
""")
    program = tmp_path / "faults"
    subprocess.run(
        ["g++", "-O1", "-std=c++17", str(source), "-o", str(program)], check=True, timeout=120
    )
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout.split() == ["1", "0"]
    assert done.returncode != 0
    assert "waits for threads that never come" in done.stderr
