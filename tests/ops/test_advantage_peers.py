"""The benchmark compares like with like: every peer gives our outputs on every kind of case, and a
wrong one is found."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
import advantage_peers
import bench_advantage


@pytest.mark.parametrize("kind", bench_advantage.KINDS)
@pytest.mark.parametrize("tokens", [0, 5000])
def test_peers_agree_with_the_operator(kind, tokens):
    case = bench_advantage.make_case(kind, 512, tokens, "cpu")
    wanted = advantage_peers.cero(case)
    for name, peer in advantage_peers.peers().items():
        assert advantage_peers.disagreement(peer(case), wanted) == "", name


def test_a_wrong_peer_is_named():
    case = bench_advantage.make_case("constant 8", 64, 100, "cpu")
    wanted = advantage_peers.cero(case)
    assert advantage_peers.disagreement(wanted._replace(std=wanted.std + 0.1), wanted) == "std"
    assert advantage_peers.disagreement(wanted._replace(token_adv=None), wanted) == "token_adv"


@pytest.mark.parametrize("kind", bench_advantage.KINDS)
@pytest.mark.parametrize("rollouts", [512, 8192, 65536])
def test_sizes_sum_to_the_rollouts(kind, rollouts):
    sizes = bench_advantage.group_sizes(kind, rollouts, np.random.default_rng(0))
    assert sizes.sum() == rollouts
    assert sizes.min() >= 1
    assert sizes.max() <= 1024


def test_only_the_operator_is_exact_on_equal_rewards():
    assert advantage_peers.worst_on_equal_rewards(advantage_peers.cero, "cpu") == 0.0
    assert advantage_peers.worst_on_equal_rewards(advantage_peers.index_add, "cpu") > 1e-3


def test_a_share_of_the_bandwidth_counts_each_byte_once():
    case = bench_advantage.make_case("constant 8", 64, 1000, "cpu")
    outputs = advantage_peers.cero(case)
    inputs = (case.rewards, case.group_offsets, case.cu_seqlens, case.seq_rollout, case.loss_mask)
    moved = sum(x.numel() * x.element_size() for x in (*inputs, *outputs) if x is not None)
    assert bench_advantage.minimum_bytes(case) == moved
