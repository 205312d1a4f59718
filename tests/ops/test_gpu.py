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
    rewards = torch.tensor(rng.normal(size=sizes.sum()), dtype=torch.float32)
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
        assert torch.equal(a, b.cpu()), name


def test_capturable_in_a_graph():
    arguments = tuple(x.cuda() for x in case(2))
    wanted = group_advantage_tokens(*arguments)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = group_advantage_tokens(*arguments)
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(got, wanted))
