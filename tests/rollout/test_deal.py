"""Dealing groups to ranks."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cero_rl.rollout.deal import deal_groups


@given(st.lists(st.integers(1, 500), max_size=40), st.integers(1, 5))
def test_every_group_once_and_within_the_bound(costs: list[int], world: int):
    cost = np.array(costs, dtype=np.float64)
    ranks = deal_groups(cost, world)
    assert ranks.shape == cost.shape
    if costs:
        assert 0 <= ranks.min() <= ranks.max() < world
        loads = [cost[ranks == rank].sum() for rank in range(world)]
        lower = max(cost.max(), cost.sum() / world)
        assert max(loads) <= 4 / 3 * lower + max(costs) / 3 + 1e-9


def test_a_group_that_has_a_rank_keeps_it_and_counts_as_load():
    cost = np.array([10.0, 1.0, 4.0, 4.0])
    owner = np.array([1, -1, -1, -1])
    assert deal_groups(cost, 2, owner).tolist() == [1, 0, 0, 0]
    assert owner.tolist() == [1, -1, -1, -1]
