"""Which one key helps where a plan does not fit: each is tried on the plan itself, those that cost
least speed first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from cero_rl.config import Config
from cero_rl.memory.plan import Plan

Planned = Callable[[Config, int], Plan | None]  # of a configuration and a number of ranks
MOST_RANKS = 512


@dataclass(frozen=True)
class Advice:
    """`setting` is KEY=VALUE; `fits`: with it alone the run does."""

    setting: str
    plan: Plan
    fits: bool


def advise(config: Config, plan: Plan, planned: Planned) -> Advice | None:
    """The first single setting with which all fits; else the one after which the phase that is too
    large needs least. None where no key makes it smaller."""
    best: Advice | None = None
    worst = _need(plan)
    for setting, changed in _candidates(config, plan):
        other = planned(changed, plan.machine.ranks)
        if other is None:
            continue
        if other.fits:
            return Advice(setting, other, True)
        if _need(other) < (_need(best.plan) if best else worst):
            best = Advice(setting, other, False)
    return best


def fewest_ranks(config: Config, planned: Planned, start: int = 1) -> int | None:
    """The smallest power of two of ranks, from `start`, on which it fits."""
    ranks = start
    while ranks <= MOST_RANKS:
        plan = planned(config, ranks)
        if plan is not None and plan.fits:
            return ranks
        ranks *= 2
    return None


def _need(plan: Plan) -> int:
    return plan.peak.bytes


def _candidates(config: Config, plan: Plan) -> Iterator[tuple[str, Config]]:
    for section, key, values in _ladder(config, plan):
        for value in values:
            if (changed := _with(config, section, key, value)) is not None:
                yield f"{section}.{key}={_word(value)}", changed


def _ladder(config: Config, plan: Plan) -> list[tuple[str, str, list[Any]]]:
    """Keys in the order of what they cost; values from the mildest."""
    rollout, tokens = config.rollout, config.learner.max_micro_batch_tokens
    share = round(rollout.gpu_memory_fraction * 20)
    higher = [step / 20 for step in range(share + 1, 19)] if plan.problem else []
    divisors = [n for n in (2, 4, 8) if plan.machine.ranks % n == 0]
    widths = [n for n in divisors if n > rollout.tensor_parallel]
    slices = [n for n in divisors if n > config.zero.sequence_parallel]
    return [
        ("rollout", "gpu_memory_fraction", higher),
        ("rollout", "gpu_memory_fraction", [step / 20 for step in range(share - 1, 1, -1)]),
        ("rollout", "max_batch_tokens", [rollout.max_batch_tokens // 2**n for n in (1, 2, 3)]),
        ("learner", "max_micro_batch_tokens", [tokens // 2, tokens // 4]),
        ("zero", "offload_states_in_rollout", [True]),
        ("rollout", "sleep", [True]),
        ("zero", "stage", [3]),
        ("model", "gradient_checkpointing", [True]),
        ("zero", "sequence_parallel", slices),
        ("rollout", "tensor_parallel", widths),
        ("zero", "offload_optimizer", ["cpu"]),
        ("zero", "offload_parameters", ["cpu"]),
    ]


def _with(config: Config, section: str, key: str, value: Any) -> Config | None:
    """The configuration with one value changed; None where it is so already or may not be."""
    if getattr(getattr(config, section), key) == value:
        return None
    tree = config.model_dump()
    tree[section][key] = value
    try:
        return Config.model_validate(tree)
    except ValidationError:
        return None


def _word(value: Any) -> str:
    return (
        str(value).lower()
        if isinstance(value, bool)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )
