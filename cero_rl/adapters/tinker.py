"""tinker-cookbook 0.6: an RLDataset whose batches are a scheduler's rounds, with ragged groups.
Experimental: the dataset and the groups were run with the real package, training needs its service.

    dataset = CeroRLDataset(stream, make_builder, batches=200)

`make_builder(prompt_id, rollouts)` gives the EnvGroupBuilder of a prompt with that many
environments, as a recipe's own dataset does with its fixed group size. The rewards of a group are
told to the scheduler when the group has ended; a group whose rollouts all failed goes back to the
budget at the next batch. With rollouts in other processes (pickled builders) the scheduler would
hear nothing: that is refused.
"""

from __future__ import annotations

# pyright: reportMissingImports=false
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from tinker_cookbook.rl.types import Env, EnvGroupBuilder, RLDataset, Trajectory

from cero_rl.adapters.stream import PromptStream, Ticket

MakeBuilder = Callable[[int, int], EnvGroupBuilder]


class CeroRLDataset(RLDataset):
    """`batches` is the scheduler's number of rounds. Batches are asked for one after another; a
    batch that is asked for again, after a crash, gives the groups that have not ended."""

    def __init__(self, stream: PromptStream, make_builder: MakeBuilder, batches: int) -> None:
        self.stream, self._make, self._batches = stream, make_builder, batches
        self._open: list[Ticket] = []

    def get_batch(self, index: int) -> Sequence[EnvGroupBuilder]:
        """The groups of the next round; none once the budget is spent. What of the round before
        never ended is given back to the budget first."""
        if self._open:
            self.stream.close_round()
        self._open = []
        while tickets := self.stream.take(2**31):
            self._open += tickets
        return [_Told(self.stream, t, self._make(t.prompt_id, t.rollouts)) for t in self._open]

    def __len__(self) -> int:
        return self._batches


class _Told(EnvGroupBuilder):
    """A recipe's builder, whose rewards the scheduler hears of."""

    def __init__(self, stream: PromptStream, ticket: Ticket, builder: EnvGroupBuilder) -> None:
        self._stream, self._ticket, self._builder = stream, ticket, builder

    async def make_envs(self) -> Sequence[Env]:
        envs = await self._builder.make_envs()
        if len(envs) != self._ticket.rollouts:
            raise ValueError(
                f"make_builder({self._ticket.prompt_id}, {self._ticket.rollouts}): its group has "
                f"{len(envs)} environments, wanted {self._ticket.rollouts}"
            )
        return envs

    async def compute_group_rewards(
        self, trajectory_group: list[Trajectory], env_group: Sequence[Env]
    ) -> Any:
        rewards = await self._builder.compute_group_rewards(trajectory_group, env_group)
        totals: list[float | None] = [
            sum(step.reward for step in trajectory.transitions) + final
            for trajectory, (final, _) in zip(trajectory_group, rewards, strict=True)
        ]
        # rollouts that failed on the way are missing: spent, and no evidence
        totals += [None] * (self._ticket.rollouts - len(totals))
        self._stream.put(self._ticket, totals)
        return rewards

    async def cleanup(self) -> None:
        await self._builder.cleanup()

    def logging_tags(self) -> list[str]:
        return self._builder.logging_tags()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "CeroRLDataset: groups cannot run in other processes, the scheduler would not hear of "
            "their rewards; use the in-process rollout executor"
        )
