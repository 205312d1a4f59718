"""The reward function tried on the data's own answers before a model is loaded: does the data have
the columns that it asks for, can it judge by the answers, does a right answer score?

In: the reward's configuration and prompts. Out: lines for the user. Raises RewardError (exit 5) for
a function that breaks its contract, DataError (exit 3) for answers that it cannot judge by.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cero_rl.config.reward import RewardConfig
from cero_rl.data.prompts import Prompt
from cero_rl.errors import DataError, RewardError
from cero_rl.rewards.answers import alternatives, answer_text
from cero_rl.rewards.base import RewardItem, RewardResult
from cero_rl.rewards.pool import Limits, RewardPool, gold_problems
from cero_rl.rewards.several import alone

_ANSWERS = 256  # of a set; as each may take its whole time
_CALLS = 8  # of a user's function, which may ask a paid service
_BAD_SHARE = 0.01  # a larger share is refused; a few in a large set are named
_SHOWN = 3


def try_reward(config: RewardConfig, prompts: Sequence[Prompt], field: str) -> list[str]:
    """What is to be said of the reward on these prompts; `field` says which they are. Calls the
    function with the reference answer as the completion: of a prompt of each set of columns, and of
    the first prompts."""
    if not prompts:
        return []
    lines: list[str] = []
    for part in config.parts:
        said = _try_one(alone(config, part), config.limits_of(part), prompts, field)
        named = f"{part.label} (weight {part.weight:g}): " if config.functions else ""
        lines += [named + line for line in said]
    if config.functions:
        read = config.evidence or "the weighted sum"
        lines.append(f"the posterior and the evaluation read {read}")
    return lines


def _try_one(
    config: RewardConfig, limits: Limits, prompts: Sequence[Prompt], field: str
) -> list[str]:
    if config.function in ("exact", "math"):
        return _try_answers(config, prompts, field)
    kinds: dict[frozenset[str], Prompt] = {}
    for prompt in prompts:
        kinds.setdefault(frozenset(prompt.columns), prompt)
    chosen = list({p.key: p for p in [*kinds.values(), *prompts[:_CALLS]]}.values())[:_CALLS]
    results = []
    with RewardPool(config, limits=limits) as pool:
        for prompt in chosen:
            try:
                results.append(pool.score([_answered(prompt)]))
            except RewardError as error:
                raise RewardError(f"{error} (tried on {prompt.where})") from None
    return [_summary(config, results)]


def _answered(prompt: Prompt) -> RewardItem:
    said = answer_text(alternatives(prompt.reference)[0])
    return RewardItem(prompt.content, said, prompt.reference, prompt.source, prompt.columns)


def _summary(config: RewardConfig, results: Sequence[RewardResult]) -> str:
    values = np.concatenate([result.values for result in results])
    judged = values[np.isfinite(values)]
    tried = f"{config.function} on {len(values)} reference answers as completions"
    if not judged.size:
        first = next((r.first_error for r in results if r.first_error), "each took too long")
        return f"{tried}: all missing (first: {first}); is it right?"
    return f"{tried}: {judged.size} judged, mean {judged.mean():.2f}"


def _try_answers(config: RewardConfig, prompts: Sequence[Prompt], field: str) -> list[str]:
    chosen = prompts if config.function == "exact" else prompts[:_ANSWERS]
    problems = gold_problems(config, [prompt.reference for prompt in chosen])
    named = [(f"{p.where}: {why}", why) for p, why in zip(chosen, problems) if why is not None]
    bad = [said for said, why in named if why.never_right]
    as_text = [said for said, why in named if not why.never_right]
    which = f"the first {len(chosen)}" if len(chosen) < len(prompts) else f"all {len(chosen)}"
    lines = []
    if as_text:
        shown = _some(as_text)
        lines.append(f"{field}: {len(as_text)} of {which} answers are compared as text: {shown}")
    if not bad:
        return [f"{config.function} can judge by {which} answers of {field}", *lines]
    said = f"{len(bad)} of {which} answers cannot be judged by {config.function}: {_some(bad)}"
    if len(bad) > _BAD_SHARE * len(chosen):
        raise DataError(
            f"{field}: {said}; repair or remove these rows, or set another reward.function"
        )
    return [f"{field}: {said}", *lines]


def _some(problems: list[str]) -> str:
    return "; ".join(problems[:_SHOWN]) + ("; ..." if len(problems) > _SHOWN else "")
