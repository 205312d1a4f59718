"""On a GPU: the same bits as the CPU, and no host synchronisation (a graph capture would fail)."""

import os

import numpy as np
import pytest
import torch

from cero_rl.ops import group_advantage_tokens

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _needs_gpu():
    if not torch.cuda.is_available():
        assert os.environ.get("CERO_REQUIRE_GPU") != "1", "CERO_REQUIRE_GPU=1 but torch sees no GPU"
        pytest.skip("no GPU")


def case(seed: int):
    rng = np.random.default_rng(seed)
    sizes = np.minimum(rng.lognormal(2.0, 1.2, 5000).astype(int), 1025)
    sizes[:10] = [0, 1, 2, 31, 32, 33, 512, 513, 1024, 1025]
    rewards = torch.tensor(rng.normal(size=sizes.sum()), dtype=torch.float32)
    rewards[int(sizes[:4].sum())] = torch.nan
    rewards[-40:] = -0.0
    lengths = rng.integers(0, 200, rewards.numel())
    cu = torch.tensor(np.cumsum([0, *lengths]), dtype=torch.int32)
    mask = torch.tensor(rng.random(int(cu[-1])) < 0.7)
    return rewards, torch.tensor(np.cumsum([0, *sizes])), cu, mask


@pytest.mark.parametrize("norm", ["center", "std", "rloo", "maxrl"])
def test_cuda_equals_cpu_bit_for_bit(norm):
    arguments = case(1)
    on_cpu = group_advantage_tokens(*arguments, norm=norm)
    on_gpu = group_advantage_tokens(*(x.cuda() for x in arguments), norm=norm)
    for name, a, b in zip(on_cpu._fields, on_cpu, on_gpu):
        b = b.cpu()
        if a.is_floating_point():  # the payload of a NaN is nobody's promise
            assert torch.equal(a.isnan(), b.isnan()), name
            a, b = (x.nan_to_num(nan=0.0).view(torch.int32) for x in (a, b))
        assert torch.equal(a, b), name


def test_capturable_in_a_graph():
    arguments = tuple(x.cuda() for x in case(2))
    wanted = group_advantage_tokens(*arguments)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = group_advantage_tokens(*arguments)
    graph.replay()
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(got, wanted))


def test_runs_on_a_device_that_is_not_the_current_one():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    arguments = case(3)
    on_cpu = group_advantage_tokens(*arguments)
    on_gpu = group_advantage_tokens(*(x.to("cuda:1") for x in arguments))
    assert torch.equal(on_cpu.token_adv.nan_to_num(), on_gpu.token_adv.cpu().nan_to_num())
