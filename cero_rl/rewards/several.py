"""Judge: all reward functions of a run, each in a pool of workers of its own, asked one after the
other, and what their scores come to.

In: RewardConfig, RewardItems. Out: Judged: what trains, what is evidence, what is logged.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import compress

import numpy as np

from cero_rl.config.reward import RewardConfig, RewardPart
from cero_rl.errors import RewardError
from cero_rl.rewards.base import RewardCounts, RewardItem, RewardResult
from cero_rl.rewards.parts import PartSums, Values, scale_of_evidence, weighted_sum
from cero_rl.rewards.pool import RewardPool


@dataclass(frozen=True)
class Judged:
    """Of n items, in their order."""

    values: Values  # f32[n] what trains; nan where missing
    evidence: Values  # f32[n] in [0, 1]; nan where `values` is, and where its function's is
    counts: RewardCounts
    first_error: str | None
    parts: tuple[Values, ...]  # f32[n] of each function, in their order
    sums: PartSums


def alone(config: RewardConfig, part: RewardPart) -> RewardConfig:
    """The configuration of one of the functions."""
    return config.model_copy(
        update={"function": part.function, "kwargs": part.kwargs, "functions": ()}
    )


class Judge:
    """Context manager around the pools; `score` may be called any number of times inside it, from
    the thread that opened it."""

    def __init__(self, config: RewardConfig) -> None:
        """Raises RewardError for an unknown function or a plug-in file that is not there."""
        self.config = config
        self._pools = [
            RewardPool(alone(config, part), limits=config.limits_of(part)) for part in config.parts
        ]
        self._scale = scale_of_evidence(config)
        self._open = ExitStack()

    def __enter__(self) -> Judge:
        with ExitStack() as stack:
            for pool in self._pools:
                stack.enter_context(pool)
            self._open = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._open.close()

    def wait_ready(self) -> None:
        """Wait until every function is loaded. Raises RewardError with the reason why one could
        not be."""
        for pool in self._pools:
            pool.wait_ready()

    def score(self, items: Sequence[RewardItem]) -> Judged:
        """Raises RewardError (the run must end) as `RewardPool.score` does, with the name of the
        function where there are several."""
        config, sums = self.config, PartSums()
        results = [self._asked(k, items) for k in range(len(self._pools))]
        parts = tuple(result.values for result in results)
        if not config.functions:
            (only,) = results
            sums.take("", only)
            evidence = self._scale.evidence(only.values)
            return Judged(only.values, evidence, only.counts, only.first_error, parts, sums)
        for part, result in zip(config.functions, results):
            sums.take(part.label, result)
        total = weighted_sum(config, parts)
        read = [v for p, v in zip(config.functions, parts) if p.label == config.evidence]
        evidence = self._scale.evidence(read[0] if read else total)
        evidence = np.where(np.isnan(total), np.float32(np.nan), evidence)
        weighs = [bool(part.weight) for part in config.functions]
        said = [
            f"{part.label}: {result.first_error}"
            for part, result in zip(config.functions, results)
            if part.weight and result.first_error
        ]
        counts = _counts(total, list(compress(results, weighs)))
        return Judged(total, evidence, counts, said[0] if said else None, parts, sums)

    def _asked(self, k: int, items: Sequence[RewardItem]) -> RewardResult:
        try:
            return self._pools[k].score(items)
        except RewardError as error:
            if not self.config.functions:
                raise
            raise RewardError(f"{error} ({self.config.functions[k].label})") from None


def _counts(total: Values, results: Sequence[RewardResult]) -> RewardCounts:
    """An item that a function failed on is an error, one that was only late a time-out."""
    missing = np.isnan(total)
    failed = np.zeros_like(missing)
    for result in results:
        failed[list(result.failed)] = True
    errors = int((missing & failed).sum())
    timeouts = int(missing.sum()) - errors
    return RewardCounts(total.size - errors - timeouts, timeouts, errors)


def check_reward(config: RewardConfig) -> None:
    """Load the reward functions in a worker each and drop them again: call it before the model
    loads.

    Raises RewardError (exit 5): unknown name, missing file or function, import failure, unknown
    signature, missing package.
    """
    with Judge(config.model_copy(update={"workers": 1})) as rewards:
        rewards.wait_ready()
