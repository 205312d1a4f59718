"""Why the open round's prompts were chosen: what one more unit of each was worth before the round
served it, and which of them a reserve put first.

In: the state of an allocator at the beginning of a step. Out: `Reasons`, for evidence.jsonl. It is
read off the saved state alone, so a resumed run writes what it would have written.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from cero_rl.scheduler.posterior import Floats
from cero_rl.scheduler.sizes import Ids

Reserved = Literal["probe", "floor"]


@dataclass(frozen=True, slots=True)
class Reasons:
    """slope f64[P]: of the utility at today's exposure over the largest possible, what a price is
    held against; None: the allocator has no slopes. reserved: prompts of the open round that came
    first in it, whatever they are worth."""

    slope: Floats | None = None
    reserved: dict[Reserved, Ids] = field(default_factory=dict)

    def entry(self, prompt_ids: Ids) -> dict[str, list[float] | list[int]]:
        """What a line of evidence.jsonl says of a step's groups: their slopes, and the prompts of
        each reserve among them."""
        found: dict[str, list[float] | list[int]] = {}
        if self.slope is not None:
            found["slope"] = np.round(self.slope[prompt_ids], 5).tolist()
        for name, ids in self.reserved.items():
            here = prompt_ids[np.isin(prompt_ids, ids)]
            if here.size:
                found[name] = here.tolist()
        return found


def put_first(
    ids: Ids, units: npt.NDArray[np.int64], probes: npt.NDArray[np.bool_], due_units: int
) -> dict[Reserved, Ids]:
    """Of a round's groups i64[G], in their order: the leading ones that a reserve of `due_units`
    units put there."""
    first = ids[np.cumsum(units) <= due_units]
    looked = probes[first]
    return {"probe": first[looked], "floor": first[~looked]}
