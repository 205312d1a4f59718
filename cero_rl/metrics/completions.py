"""Some completions of a step as rows for the console: what was asked and answered, what it was
worth, what it trained with, and what had been expected.

In: rank 0's rollouts and its batch. Out: `CompletionRow`, whose texts are one line each and fit for
a terminal, whatever a model wrote.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cero_rl.data.prompts import Prompt
from cero_rl.learner.batch import TrainingBatch
from cero_rl.legible import both_ends, one_line
from cero_rl.rollout.collector import Rollouts
from cero_rl.scheduler.posterior import Floats

ROWS = 6
_PROMPT = 60  # characters
_COMPLETION = 120


@dataclass(frozen=True)
class CompletionRow:
    prompt: str
    completion: str
    reward: float  # nan: missing
    advantage: float  # nan: it does not train
    expected: float  # success rate of the prompt, before the step


def is_due(step: int, every: int) -> bool:
    """At the first step, which shows whether prompts and rewards are as they were meant, and at
    every multiple; never for 0."""
    return every > 0 and (step == 1 or step % every == 0)


def completion_rows(
    rollouts: Rollouts, batch: TrainingBatch, prompts: Sequence[Prompt], expected: Floats
) -> list[CompletionRow]:
    """At most ROWS, spread evenly over this rank's completions; expected f64[P]."""
    places = [(j, k) for j, g in enumerate(rollouts.groups) for k in range(len(g.completions))]
    if not places:
        return []
    chosen = np.unique(np.linspace(0, len(places) - 1, ROWS).astype(int))
    advantages = iter(batch.advantages.tolist())  # of what trains, in the order of `places`
    of_all = [math.nan if np.isnan(kept) else next(advantages) for g in batch.kept for kept in g]
    rows = []
    for index in chosen.tolist():
        group, k = rollouts.groups[places[index][0]], places[index][1]
        prompt = prompts[group.prompt_id]
        rows.append(
            CompletionRow(
                one_line(prompt.asked, _PROMPT),
                both_ends(group.completions[k].text, _COMPLETION),
                float(rollouts.rewards[places[index][0]][k]),
                of_all[index],
                float(expected[group.prompt_id]),
            )
        )
    return rows
