"""One rank's parts of a step for the tests of several folders: the shipped tiny model, its pool,
and the real engine, rewards and schedulers. No process group, no ZeRO, no subprocess."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cero_rl.checkpoint.progress import Progress
from cero_rl.config import Config, load_config
from cero_rl.data.pool import Data, load_data
from cero_rl.distributed.block import Block
from cero_rl.distributed.group import Group
from cero_rl.job.watchdog import Watchdog
from cero_rl.metrics.step import Clocks
from cero_rl.models.attention import choose_attention
from cero_rl.models.load import load_model, load_tokenizer
from cero_rl.models.logprob import PolicyModule, forward_micro
from cero_rl.models.weights import Source, buffers_of
from cero_rl.rewards.base import RewardCounts
from cero_rl.rewards.several import Judge
from cero_rl.rollout.collector import Collector, Rollouts
from cero_rl.rollout.counts import GroupCounts
from cero_rl.rollout.engines.build import build_rollout_engine
from cero_rl.rollout.protocol import RolloutRequest
from cero_rl.rollout.shared_engine import SharedEngine
from cero_rl.train.rounds import Rounds
from cero_rl.train.scheduler import build_scheduler
from cero_rl.types import Allocation, Completion, RolloutGroup, Step
from cero_rl.zero.policy import StepOutcome

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "recipes/assets/tiny_digits"
SMALL = [
    f"model.path={MODEL}",
    f"data.source={ROOT / 'recipes/assets/digits_unfiltered.jsonl'}",
    f"data.heldout_source={ROOT / 'recipes/assets/digits_heldout.jsonl'}",
    "data.limit=48",
    "data.heldout_limit=4",
    "scheduler.rounds=4",
    "budget.total_rollouts=128",
    "scheduler.rollouts_per_unit=4",
    "scheduler.max_units_per_prompt=2",
    "logging.tensorboard=false",
]


def config_of(*overrides: str) -> Config:
    return load_config(ROOT / "recipes/digits_cpu.yaml", [*SMALL, *overrides])


@cache
def tokenizer() -> Any:
    return load_tokenizer(str(MODEL))


def whole_round(prompt_ids: Sequence[int], rollouts: Sequence[int], index: int = 0) -> Step:
    """A step that is a round of its own."""
    allocation = Allocation(
        index, np.array(prompt_ids, dtype=np.int64), np.array(rollouts, dtype=np.int32)
    )
    return Step(allocation, 0, len(prompt_ids))


class OneRank:
    """Everything that one rank needs to sample the steps of a run; without `waves` also steps that
    no scheduler planned."""

    def __init__(self, *overrides: str, waves: bool = True) -> None:
        self.waves = waves
        self.config = config_of(*overrides)
        self.group = Group.alone()
        self.data: Data = load_data(self.config, tokenizer())
        self.pool = self.data.train
        self.engine = build_rollout_engine(self.config, tokenizer(), self.group)
        self.rewards = Judge(self.config.reward)
        self.watchdog = Watchdog(self.config.watchdog.stall_seconds)  # never entered
        self.clocks = Clocks()
        self.begin()

    def begin(self) -> None:
        """A run at its start, as in a new process."""
        self.scheduler = build_scheduler(self.config, len(self.pool))
        self.progress = Progress.fresh(self.config, len(self.pool))
        per_step = self.config.learner.rollouts_per_step
        self.rounds = Rounds(self.scheduler, self.progress, per_step, self.clocks.clock)
        self.collect_with(self.engine.engine)

    def collect_with(self, engine: Any) -> None:
        """A new collector, with this engine under it."""
        self.collector = Collector(
            self.pool,
            SharedEngine(engine, self.group),
            self.rewards,
            self.progress.lengths,
            self.scheduler.next_wave if self.waves else lambda so_far: None,
            self.config,
            self.group,
            self.watchdog,
        )

    def finish(self, step: Step) -> Rollouts:
        return self.collector.finish(step, self.clocks.clock)


class PlainPolicy:
    """The policy of one rank with torch's own optimizer in the place of ZeRO."""

    def __init__(self, config: Config) -> None:
        attention = choose_attention(config.model.attention)
        self.causal_lm = load_model(config.model.path, config.model.dtype, attention)
        self.adapter = None
        self.block = Block()
        self._module = PolicyModule(self.causal_lm, temperature=config.rollout.temperature)
        self._optimizer = torch.optim.SGD(self._module.parameters(), lr=0.0)

    def logps(self, micro: Any, *, with_entropy: bool) -> tuple[Tensor, Tensor]:
        return forward_micro(self._module, micro, with_entropy=with_entropy)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self, learning_rate: float) -> StepOutcome:
        self._optimizer.param_groups[0]["lr"] = learning_rate
        norm = torch.nn.utils.clip_grad_norm_(self._module.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return StepOutcome(applied=True, grad_norm=float(norm))

    def train(self, mode: bool) -> None:
        self._module.train(mode)

    def weights(self) -> list[Source]:
        parameters = [Source.of(*named) for named in self.causal_lm.named_parameters()]
        return [*parameters, *buffers_of(self.causal_lm)]

    def sampled_weights(self) -> list[Source]:
        return self.weights()


class Short:
    """An engine that loses the last `lost` completions of every group."""

    def __init__(self, engine: Any, lost: int = 1) -> None:
        self._engine = engine
        self._lost = lost

    def generate(self, requests: Sequence[RolloutRequest], **settings: Any) -> list[RolloutGroup]:
        return [
            RolloutGroup(g.prompt_id, g.prompt_tokens, g.completions[: -self._lost])
            for g in self._engine.generate(requests, **settings)
        ]


def tokens_of(rollouts: Rollouts) -> dict[int, list[list[int]]]:
    """Every completion's tokens, by prompt."""
    return {g.prompt_id: [c.token_ids.tolist() for c in g.completions] for g in rollouts.groups}


def made_group(
    prompt_id: int, lengths: Sequence[int], cut: Sequence[int] = (), versions: Sequence[int] = ()
) -> RolloutGroup:
    """A group by hand: response tokens of each completion, and which of them were cut."""
    completions = tuple(
        Completion(
            np.arange(n, dtype=np.int64) + 1,
            np.full(n, -0.5, dtype=np.float32),
            f"answer {i}",
            "length" if i in cut else "stop",
            versions[i] if versions else 0,
        )
        for i, n in enumerate(lengths)
    )
    return RolloutGroup(prompt_id, np.array([1, 2, 3], dtype=np.int64), completions)


def made_rollouts(
    groups: Sequence[RolloutGroup],
    rewards: Sequence[Sequence[float]],
    *,
    requested: Sequence[int] | None = None,
    timeouts: int = 0,
    error: str | None = None,
) -> Rollouts:
    """One wave by hand: rewards of each completion, nan where missing."""
    sizes = [len(g.completions) for g in groups]
    wanted = [max(size, 1) for size in sizes] if requested is None else list(requested)
    values = [np.array(r, dtype=np.float32) for r in rewards]
    counts = GroupCounts.zeros(len(groups))
    for j, (group, own) in enumerate(zip(groups, values)):
        counts.count(j, group, own, own)
    scored = int(counts.trials.sum())
    return Rollouts(
        whole_round([g.prompt_id for g in groups], wanted),
        list(groups),
        values,
        1,
        np.array([g.prompt_id for g in groups], dtype=np.int64),
        np.array(wanted, dtype=np.int64),
        counts,
        RewardCounts(scored, timeouts, sum(sizes) - scored - timeouts),
        error,
    )
