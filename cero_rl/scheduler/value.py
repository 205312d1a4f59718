"""What one rollout of a prompt is worth under its posterior: the proxies that CERO can be run with.

In:  a, b f64[n], the Beta posteriors of some prompts; group, rollouts of one group. Out: worth
f64[n] in [0, 1/4].

    variance   E[p (1-p)]                  the papers' choice: variance of the next reward
    hit        E[1 - (1-p)^n] / 4          some rollout of the group is right (HORA, arXiv
                                           2605.07114, on the running posterior)
    live       E[1 - p^n - (1-p)^n] / 4    the group has a gradient: neither all right nor all
                                           wrong (ours)
    graded     E[Var r]                    the variance of rewards anywhere in [0, 1], from their
                                           sums of squares (ours)

"graded" is the expected variance under a Dirichlet-process posterior of the reward's law, whose
base is the prior: with n = a + b, E[Var] = (E r^2 - (E r)^2) n / (n + 1). For 0/1 rewards E r^2
= E r = a/n, and this is E[p(1-p)] exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import numpy as np

from cero_rl.scheduler.posterior import Floats, expected_variance

ValueName: TypeAlias = Literal["variance", "hit", "live", "graded", "progress"]
# (a [n], b [n]) -> worth [n] in [0, 1/4]
ValueFunction: TypeAlias = Callable[[Floats, Floats], Floats]
VALUES: tuple[ValueName, ...] = ("variance", "hit", "live", "graded", "progress")


def _all_of(counts: Floats, total: Floats, group: int) -> Floats:
    """E[x^group] for x with pseudo-counts `counts` of `total`: the chance that a whole group
    comes out that way."""
    chance = np.ones_like(counts)
    for drawn in range(group):
        chance *= (counts + drawn) / (total + drawn)
    return chance


def hit_utility(a: Floats, b: Floats, group: int) -> Floats:
    """A quarter of the probability that at least one of `group` rollouts is right."""
    return 0.25 * (1.0 - _all_of(b, a + b, group))


def live_probability(a: Floats, b: Floats, group: int) -> Floats:
    """A quarter of the probability that `group` rollouts are neither all right nor all wrong; 0
    for a group of one."""
    total = a + b
    return 0.25 * np.maximum(1.0 - _all_of(a, total, group) - _all_of(b, total, group), 0.0)


def graded_variance(a: Floats, b: Floats, squares: Floats) -> Floats:
    """Expected variance of the next reward; squares f64[n] is the posterior's sum of squared
    rewards, its prior's share a0 included."""
    total = a + b
    mean = a / total
    return np.maximum(squares / total - mean * mean, 0.0) * (total / (total + 1.0))


def value_function(name: ValueName, group: int) -> ValueFunction:
    """The proxy of (a, b) called `name`; "graded" and "progress" start from the variance. Raises
    ValueError for another name."""
    if name not in VALUES:
        raise ValueError(
            f"value = {name!r}, wanted one of {', '.join(VALUES)}, or a function of (a, b)"
        )
    if name == "hit":
        return lambda a, b: hit_utility(a, b, group)
    if name == "live":
        return lambda a, b: live_probability(a, b, group)
    return expected_variance
