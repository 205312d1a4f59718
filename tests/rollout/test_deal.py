"""Dealing groups to ranks."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cero_rl.rollout.deal import deal_groups


@given(st.lists(st.integers(1, 500), max_size=40), st.integers(1, 5))
def test_every_group_once_and_within_the_bound(costs: list[int], world: int):
    cost = np.array(costs, dtype=np.float64)
    dealt = deal_groups(cost, world)
    assert sorted(np.concatenate(dealt).tolist()) == list(range(len(costs)))
    if costs:
        loads = [cost[d].sum() for d in dealt]
        lower = max(cost.max(), cost.sum() / world)
        assert max(loads) <= 4 / 3 * lower + max(costs) / 3 + 1e-9
