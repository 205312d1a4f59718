"""On a GPU: the CPU's bits, in every run, grid and stream, and no wait of the host. The checks are
in gpu_cases.py."""

import os
import sys
from pathlib import Path

import gpu_cases
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
import bench_timing

from cero_rl.ops import group_advantage_tokens


@pytest.fixture
def gpu():
    if not torch.cuda.is_available():
        assert os.environ.get("CERO_REQUIRE_GPU") != "1", "CERO_REQUIRE_GPU=1 but torch sees no GPU"
        pytest.skip("no GPU")


@pytest.mark.gpu
@pytest.mark.parametrize("name", gpu_cases.checks())
def test_on_the_gpu(gpu, name):
    gpu_cases.checks()[name]()


@pytest.mark.gpu
def test_two_launches_and_no_wait(gpu):
    arguments = gpu_cases.on_gpu(gpu_cases.case(9))
    assert bench_timing.count_launches(lambda: group_advantage_tokens(*arguments)) == 2
    assert bench_timing.count_syncs(lambda: group_advantage_tokens(*arguments)) == 0
    assert bench_timing.count_syncs(lambda: arguments[0].sum().item()) == 1  # the counter counts


def test_the_cases_hold_on_the_cpu():
    """What can be known of the cases without a GPU: they are valid inputs, with every edge they
    name."""
    rewards, offsets, cu, mask = gpu_cases.case(1, groups=60)
    out = group_advantage_tokens(rewards, offsets, cu, mask)
    assert (offsets[1:] - offsets[:-1])[
        : len(gpu_cases.EDGE_SIZES)
    ].tolist() == gpu_cases.EDGE_SIZES
    assert out.adv.isnan().any()
    assert out.live.any()
    assert not out.live.all()
    gpu_cases.assert_same_bits(out, out, "itself")
    with pytest.raises(AssertionError, match="output 1"):
        gpu_cases.assert_same_bits((out.adv, out.mean), (out.adv, out.mean + 1), "moved")
