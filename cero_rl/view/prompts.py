"""The pool as rows: sorted by one number, filtered by text or label.

In: `Facts` of a run. Out: `Prompts`, [P] columns, and the ids that a filter leaves in their order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cero_rl.legible import one_line
from cero_rl.report.facts import Facts
from cero_rl.report.reader import Run
from cero_rl.report.samples import plain_text
from cero_rl.scheduler.posterior import Floats
from cero_rl.scheduler.sizes import Ids

_TEXT = 200  # characters of a prompt that a filter looks at and a row may show
# key -> what it sorts by, the largest first
SORTS = {
    "s": "spent",
    "w": "worth",
    "v": "variance",
    "a": "age",
    "p": "pass",
}


@dataclass(frozen=True)
class Prompts:
    """[P] each; nan: not known."""

    run: Run
    columns: Mapping[str, Floats]  # spent, looks, pass, variance, worth, expected, age

    @classmethod
    def of(cls, facts: Facts) -> Prompts:
        run, groups = facts.run, facts.run.groups
        pool = run.num_prompts

        def summed(weights: np.ndarray) -> Floats:
            return np.bincount(groups.prompt, weights=weights, minlength=pool).astype(np.float64)

        wins, tries = summed(groups.successes), summed(groups.trials)
        rate = np.divide(wins, tries, out=np.full(pool, math.nan), where=tries > 0)
        pairs = np.where(tries > 1, tries / np.maximum(tries - 1, 1), math.nan)
        worth, expected = np.full(pool, math.nan), np.full(pool, math.nan)
        worth[groups.prompt] = groups.worth  # of several groups the latest stays
        expected[groups.prompt] = groups.expected
        newest = max(int(run.steps[-1]["step"]), int(groups.step[-1]))
        age = np.where(facts.last_look < 0, math.inf, newest - facts.last_look)
        return cls(
            run,
            {
                "spent": facts.spent.astype(np.float64),
                "looks": summed(np.ones(groups.prompt.size)),
                "pass": rate,
                "variance": rate * (1.0 - rate) * pairs,
                "worth": worth,
                "expected": expected,
                "age": age,
            },
        )

    def text(self, prompt: int) -> str:
        """One line, fit for a terminal."""
        if prompt < len(self.run.prompts):
            return one_line(self.run.prompts[prompt].asked, _TEXT)
        if prompt < len(self.run.keys):
            key = self.run.keys[prompt]
            return one_line(self._sampled.get(key, key), _TEXT)
        return f"#{prompt}"

    def labels(self, prompt: int) -> str:
        return one_line(" ".join(kinds[prompt] for kinds in self.run.labels.values()), 40)

    def ids(self, by: str, *, falling: bool = True, words: str = "") -> Ids:
        """Prompts that hold every one of the words in text or label, sorted by a column of SORTS;
        what is not known comes last."""
        column = self.columns[by]
        order = np.argsort(-column if falling else column, kind="stable")
        unknown = np.isnan(column[order])
        order = np.concatenate((order[~unknown], order[unknown]))
        wanted = words.lower().split()
        if not wanted:
            return order
        kept = [i for i in order.tolist() if self._holds(i, wanted)]
        return np.array(kept, dtype=np.int64)

    def _holds(self, prompt: int, wanted: list[str]) -> bool:
        return all(word in self._searched[prompt] for word in wanted)

    @cached_property
    def _sampled(self) -> dict[str, str]:
        """By key: what is known of prompts whose data is elsewhere."""
        lines = self.run.samples
        return {str(line.get("prompt_key")): plain_text(line.get("prompt")) for line in lines}

    @cached_property
    def _searched(self) -> list[str]:
        """[P] what a filter looks at."""
        pool = range(self.run.num_prompts)
        return [f"{self.text(i)} {self.labels(i)} #{i}".lower() for i in pool]
