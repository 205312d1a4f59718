"""What CERO is compared with, under the same interface and the same budget: uniform sampling, as GRPO does it.

In: the sizes of a run. Out: Allocations whose groups are all g*Nmax rollouts, over the pool in a shuffled order, epoch after
epoch.
"""

from __future__ import annotations

import numpy as np

from cero_rl.scheduler.core import BudgetedScheduler, BudgetSpec, Ids, StateDict, read_array, read_scalar


class UniformScheduler(BudgetedScheduler):
    """GRPO's allocation: every prompt in turn, in an order reshuffled each epoch; the cursor is carried across rounds.

    The budget is spread over the rounds as evenly as whole groups allow and is spent exactly: a round gets floor(groups left
    / rounds left) groups, at least what the later rounds could not hold, at most the capacity. Only a round's last group may
    be smaller (capacity or budget no multiple of the group). The posterior is kept for reports; it does not influence the
    plan. Raises ValueError.
    """

    name = "uniform"

    def __init__(
        self,
        num_prompts: int,
        rounds: int,
        budget_rollouts: int,
        rollouts_per_unit: int,
        max_units_per_prompt: int,
        capacity_rollouts: int,
        prior: tuple[float, float] = (1.0, 1.0),
        forgetting: float = 1.0,
        seed: int = 0,
    ) -> None:
        spec = BudgetSpec(num_prompts, rounds, budget_rollouts, rollouts_per_unit, max_units_per_prompt, capacity_rollouts)
        super().__init__(spec, prior, forgetting, seed)
        self._epoch = 0
        self._cursor = 0
        self._order: Ids = self._shuffled(0)

    @property
    def epoch(self) -> int:
        """Passes over the pool completed."""
        return self._epoch

    def _shuffled(self, epoch: int) -> Ids:
        return np.random.default_rng([self.seed, epoch]).permutation(self.spec.num_prompts)

    def _take(self, groups: int) -> Ids:
        """The next `groups` <= P prompts of the endless order, distinct, the cursor moved past them."""
        taken = self._order[self._cursor : self._cursor + groups]
        self._cursor += taken.shape[0]
        if self._cursor == self.spec.num_prompts:
            self._epoch, self._cursor = self._epoch + 1, groups - taken.shape[0]
            fresh = self._shuffled(self._epoch)
            # A round never holds a prompt twice: what it took from the old epoch waits until the end of the new one.
            repeated = np.isin(fresh, taken) if self._cursor else np.zeros(fresh.shape, dtype=bool)
            self._order = np.concatenate((fresh[~repeated], fresh[repeated]))
            taken = np.concatenate((taken, self._order[: self._cursor]))
        return taken.copy()

    def _choose(self, units_left: int, rounds_left: int) -> tuple[Ids, Ids]:
        group, capacity = self.spec.max_units_per_prompt, self.spec.capacity_units
        groups_left = -(-units_left // group)
        even = groups_left // rounds_left * group
        total = min(max(even, units_left - (rounds_left - 1) * capacity), units_left, capacity)
        groups = -(-total // group)
        units = np.full(groups, group, dtype=np.int64)
        if groups:
            units[-1] = total - (groups - 1) * group
        return self._take(groups), units

    def _extra_state(self) -> StateDict:
        return {"epoch": self._epoch, "cursor": self._cursor, "order": self._order.copy()}

    def _load_extra(self, state: StateDict) -> None:
        order = read_array(state, "order", np.int64, self.spec.num_prompts)
        epoch, cursor = int(read_scalar(state, "epoch")), int(read_scalar(state, "cursor"))
        if not 0 <= cursor < self.spec.num_prompts or not np.array_equal(np.sort(order), np.arange(self.spec.num_prompts)):
            raise ValueError("scheduler state is damaged: order must permute the pool and cursor lie in it")
        self._order, self._epoch, self._cursor = order, epoch, cursor
