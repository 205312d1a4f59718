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

and three that match what the learner does with a group of n, the mass of its advantages: the
variance is that of centred advantages and of leave-one-out baselines, and

    deviation  E[sqrt(p (1-p))] / 2        advantages over the group's standard deviation
    maxrl      E[pass@n - pass@1] / c      advantages over the group's mean (MaxRL)
    pass_at_k  E[k p (1-p)^k] / c          what the prompt's success adds to its pass@k, for a run
                                           that is to keep covering (Bayesian Boundary Gating,
                                           arXiv 2606.15455, on the running posterior); k = 1: the
                                           variance

where c makes the largest worth of any p 1/4.

"graded" is the expected variance under a Dirichlet-process posterior of the reward's law, whose
base is the prior: with n = a + b, E[Var] = (E r^2 - (E r)^2) n / (n + 1). For 0/1 rewards E r^2
= E r = a/n, and this is E[p(1-p)] exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias, get_args

import numpy as np

from cero_rl.scheduler.posterior import Floats, expected_variance

ValueName: TypeAlias = Literal[
    "variance", "hit", "live", "graded", "progress", "deviation", "maxrl", "pass_at_k"
]
"""What `scheduler.value` takes: which property of a posterior makes a rollout worth sampling."""
ValueFunction: TypeAlias = Callable[[Floats, Floats], Floats]
"""A value of one's own: pseudo-counts a f64[n], b f64[n] to worth f64[n] in [0, 1/4]."""
VALUES: tuple[ValueName, ...] = get_args(ValueName)
_SHIFT = 8  # from here on four terms of the root ratio's series are good to 1e-10


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


def _root_ratio(x: Floats) -> Floats:
    """Gamma(x + 1/2) / Gamma(x) for x > 0, relative error below 1e-9.

    g(x) = g(x+1) x/(x+1/2) leads to large x, where with w = x - 1/4 (a classical expansion)
    g = sqrt(w) (1 + 1/(64 w^2) - 19/(8192 w^4) + 631/(524288 w^6) - ...).
    """
    back = np.ones_like(x)
    for step in range(_SHIFT):
        back *= (x + step) / (x + (step + 0.5))
    w = x + (_SHIFT - 0.25)
    u = 1.0 / (w * w)
    series = 1.0 + u * (1.0 / 64.0 + u * (-19.0 / 8192.0 + u * (631.0 / 524288.0)))
    return back * series * np.sqrt(w)


def expected_deviation(a: Floats, b: Floats) -> Floats:
    """Half of E[sqrt(p(1-p))] = B(a+1/2, b+1/2) / B(a, b)."""
    return 0.5 * _root_ratio(a) * _root_ratio(b) / (a + b)


def maxrl_worth(a: Floats, b: Floats, group: int) -> Floats:
    """E[pass@n - pass@1] for n = group, over four times its largest value at any p; 0 for a group
    of one."""
    if group < 2:
        return np.zeros_like(a)
    total = a + b
    failure = group ** (-1.0 / (group - 1))  # 1 - p where q - q^n is largest
    scale = 0.25 / (failure - failure**group)
    return scale * np.maximum(b / total - _all_of(b, total, group), 0.0)


def pass_at_k_worth(a: Floats, b: Floats, k: int) -> Floats:
    """E[k p (1-p)^k], over four times its largest value at any p."""
    total = a + b
    scale = 0.25 * (k + 1.0) * (1.0 + 1.0 / k) ** k
    return scale * (a / total) * _all_of(b, total + 1.0, k)


def graded_variance(a: Floats, b: Floats, squares: Floats) -> Floats:
    """Expected variance of the next reward; squares f64[n] is the posterior's sum of squared
    rewards, its prior's share a0 included."""
    total = a + b
    mean = a / total
    return np.maximum(squares / total - mean * mean, 0.0) * (total / (total + 1.0))


def value_function(name: ValueName, group: int, pass_k: int = 1) -> ValueFunction:
    """The proxy of (a, b) called `name`, for groups of `group` rollouts; pass_k is the k of
    "pass_at_k". "graded" and "progress" start from the variance. Raises ValueError for another
    name."""
    if name not in VALUES:
        raise ValueError(
            f"value = {name!r}, wanted one of {', '.join(VALUES)}, or a function of (a, b)"
        )
    if name == "hit":
        return lambda a, b: hit_utility(a, b, group)
    if name == "live":
        return lambda a, b: live_probability(a, b, group)
    if name == "deviation":
        return expected_deviation
    if name == "maxrl":
        return lambda a, b: maxrl_worth(a, b, group)
    if name == "pass_at_k":
        return lambda a, b: pass_at_k_worth(a, b, pass_k)
    return expected_variance
