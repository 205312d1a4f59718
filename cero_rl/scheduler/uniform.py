"""What CERO is compared with, under the same interface and the same budget: uniform sampling, as
GRPO does it.

In: the sizes of a run. Out: Allocations whose groups are all g*Nmax rollouts, over the pool in a
shuffled order, epoch after epoch. `PromptOrder` is that order; most rivals draw their batches from
it too. The other rivals live in `rivals/`.
"""

from __future__ import annotations

import numpy as np

from cero_rl.scheduler.budgeted import BudgetedScheduler
from cero_rl.scheduler.sizes import BudgetSpec, Ids, NoOptions, Shared, StateDict
from cero_rl.scheduler.state import read_array, read_scalar

NOBODY: Ids = np.empty(0, dtype=np.int64)


def even_share(units_left: int, rounds_left: int, capacity: int, group: int = 1) -> int:
    """Units for this round so that the budget runs out exactly at the end: whole groups of `group`
    units where they fit.

    floor(groups left / rounds left) groups, at least what the later rounds could not hold, at most
    the capacity.
    """
    even = -(-units_left // group) // rounds_left * group
    return min(max(even, units_left - (rounds_left - 1) * capacity), units_left, capacity)


class PromptOrder:
    """An endless order of the pool: every prompt once an epoch, reshuffled each epoch from (seed,
    epoch), with a cursor."""

    def __init__(self, num_prompts: int, seed: int) -> None:
        self.num_prompts, self.seed = num_prompts, seed
        self.epoch = 0
        self.cursor = 0
        self.order: Ids = self.shuffled(0)
        self._marked = np.zeros(num_prompts, dtype=bool)  # scratch, all False between calls

    def shuffled(self, epoch: int) -> Ids:
        return np.random.default_rng([self.seed, epoch]).permutation(self.num_prompts)

    def take(self, count: int, avoid: Ids = NOBODY) -> Ids:
        """The next `count` prompts, distinct and none of `avoid`; the cursor moves past them. count
        <= P - avoid.size.

        avoid: what the open round has taken already; at the start of an epoch those prompts wait
        until its end.
        """
        assert count + avoid.shape[0] <= self.num_prompts
        taken = self._slice(count, avoid)
        if self.cursor == self.num_prompts:
            self.epoch, self.cursor = self.epoch + 1, 0
            self.order = self.shuffled(self.epoch)
            missing = count - taken.shape[0]
            if missing:
                taken = np.concatenate(
                    (taken, self._slice(missing, np.concatenate((avoid, taken))))
                )
        return taken

    def _slice(self, count: int, avoid: Ids) -> Ids:
        rest = self.order[self.cursor :]
        if avoid.size:
            self._marked[avoid] = True
            if self._marked[rest[:count]].any():
                repeated = self._marked[rest]
                self.order = np.concatenate(
                    (self.order[: self.cursor], rest[~repeated], rest[repeated])
                )
            self._marked[avoid] = False
        taken = self.order[self.cursor : self.cursor + count].copy()
        self.cursor += taken.shape[0]
        return taken

    def state(self) -> StateDict:
        return {"epoch": self.epoch, "cursor": self.cursor, "order": self.order.copy()}

    def load(self, state: StateDict) -> None:
        """Restore `state()`. Raises ValueError, and then changes nothing."""
        order = read_array(state, "order", np.int64, self.num_prompts)
        epoch, cursor = int(read_scalar(state, "epoch")), int(read_scalar(state, "cursor"))
        if not 0 <= cursor < self.num_prompts or not np.array_equal(
            np.sort(order), np.arange(self.num_prompts)
        ):
            raise ValueError(
                "scheduler state is damaged: order must permute the pool and cursor lie in it"
            )
        self.order, self.epoch, self.cursor = order, epoch, cursor


class UniformScheduler(BudgetedScheduler):
    """GRPO's allocation: every prompt in turn, in an order reshuffled each epoch; the cursor is
    carried across rounds.

    The budget is spread over the rounds as evenly as whole groups allow (see `even_share`) and is
    spent exactly. Only a round's last group may be smaller (capacity or budget no multiple of the
    group). The posterior is kept for reports; it does not influence the plan. Raises ValueError.
    """

    name = "uniform"

    def __init__(self, spec: BudgetSpec, shared: Shared, options: NoOptions) -> None:
        super().__init__(spec, shared)
        self._prompts = PromptOrder(spec.num_prompts, self.seed)

    @property
    def epoch(self) -> int:
        """Passes over the pool completed."""
        return self._prompts.epoch

    def _shuffled(self, epoch: int) -> Ids:
        return self._prompts.shuffled(epoch)

    def _choose(self, units_left: int, rounds_left: int) -> tuple[Ids, Ids]:
        group = self.spec.max_units_per_prompt
        total = even_share(units_left, rounds_left, self.spec.capacity_units, group)
        units = whole_groups(total, group)
        return self._prompts.take(units.shape[0]), units

    def _extra_state(self) -> StateDict:
        return self._prompts.state()

    def _load_extra(self, state: StateDict) -> None:
        self._prompts.load(state)


def whole_groups(total: int, group: int) -> Ids:
    """i64[ceil(total/group)] units: `group` each, the last one the residual."""
    units = np.full(-(-total // group), group, dtype=np.int64)
    if units.size:
        units[-1] = total - (units.shape[0] - 1) * group
    return units
