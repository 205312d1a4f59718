"""The dataset of tinker-cookbook with its real rollouts: groups of a scheduler's sizes, played in
the package's own environments loop. Skipped where the package is missing."""

from __future__ import annotations

# pyright: reportMissingImports=false
import asyncio
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tinker_cookbook")

import tinker
from tinker_cookbook.completers import TokenCompleter, TokensWithLogprobs
from tinker_cookbook.rl.rollouts import do_group_rollout
from tinker_cookbook.rl.types import Env, EnvGroupBuilder, StepResult

from cero_rl.adapters.rounds import AdvantageRule
from cero_rl.adapters.stream import PromptStream
from cero_rl.adapters.tinker import CeroRLDataset
from cero_rl.scheduler import CeroScheduler

PROMPTS, BUDGET, ROUNDS = 8, 48, 4


class Guess(Env):
    """One answer; right where its first token is the prompt's number or above."""

    def __init__(self, prompt_id: int) -> None:
        self.prompt_id = prompt_id

    async def initial_observation(self, *_: Any, **__: Any) -> Any:
        return tinker.ModelInput.from_ints([self.prompt_id]), [0]

    async def step(self, action: Any, *, extra: Any = None) -> StepResult:
        reward = float(action[0] >= self.prompt_id)
        ended = tinker.ModelInput.from_ints([])
        return StepResult(
            reward=reward, episode_done=True, next_observation=ended, next_stop_condition=[0]
        )


class Group(EnvGroupBuilder):
    def __init__(self, prompt_id: int, rollouts: int) -> None:
        self.prompt_id, self.rollouts = prompt_id, rollouts

    async def make_envs(self) -> Sequence[Env]:
        return [Guess(self.prompt_id) for _ in range(self.rollouts)]


class InTurn(TokenCompleter):
    """Answers 0, 1, 2, ... in turn."""

    def __init__(self) -> None:
        self.calls = 0

    async def __call__(self, *_: Any, **__: Any) -> TokensWithLogprobs:
        self.calls += 1
        return TokensWithLogprobs(tokens=[self.calls % PROMPTS], maybe_logprobs=[-1.0])


def make() -> PromptStream:
    scheduler = CeroScheduler(
        PROMPTS, ROUNDS, BUDGET, 2, 3, 12, plan="resolve", saturation=0.05, spend_down=True
    )
    return PromptStream(scheduler, budget_rollouts=BUDGET, pool="pool", rule=AdvantageRule("std"))


def play(stream: PromptStream, batches: int) -> list[list[int]]:
    dataset, policy, sizes = CeroRLDataset(stream, Group, ROUNDS), InTurn(), []
    assert len(dataset) == ROUNDS
    for index in range(batches):
        groups = dataset.get_batch(index)
        played = [asyncio.run(do_group_rollout(group, policy)) for group in groups]
        sizes.append([len(group.trajectories_G) for group in played])
    return sizes


def test_groups_are_ragged_counted_and_the_budget_is_spent(tmp_path: Path) -> None:
    stream = make()
    sizes = play(stream, ROUNDS)
    assert stream.over
    assert sum(map(sum, sizes)) == stream.ledger.spent_rollouts == BUDGET
    assert len({size for batch in sizes for size in batch}) > 1
    scheduler: Any = stream.scheduler
    assert scheduler.posterior.mean()[0] > scheduler.posterior.mean()[7]

    half, again = make(), make()
    first = play(half, 2)
    half.save(tmp_path)
    again.load(tmp_path)
    assert first + play(again, 2) == sizes


def test_what_does_not_fit_is_refused() -> None:
    stream = make()
    (group, *_) = CeroRLDataset(stream, lambda prompt, n: Group(prompt, n + 1), 4).get_batch(0)
    with pytest.raises(ValueError, match="environments, wanted"):
        asyncio.run(group.make_envs())
    with pytest.raises(TypeError, match="groups cannot run in other processes"):
        pickle.dumps(group)
