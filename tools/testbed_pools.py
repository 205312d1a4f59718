"""Pools and held-out sets of a testbed: prompts sorted by how often a start model answers them.

    learnable     right in some of 16 samples at temperature 1
    solved        right in all
    out_of_reach  right in none
    luck          a lottery of the task, right in some
    wrong_key     the key is a wrong answer of the right form, right in none

Solved, out of reach and wrong keys are dead: such a group has no signal. A pool holds LUCK and
WRONG_KEY of its prompts and as many dead ones as its mix says, exactly; within a kind, prompts come
as the task draws them, families and lengths in turn. So pools of one start model are nested: the
smaller one's prompts of a kind are the first of the larger one's.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from digits import LOTTERY, Item
from testbed_tasks import Task, wrong_key
from tiny_models import Sampler, right

from cero_rl.files.jsonl import append_jsonl

SAMPLES, FIRST_SAMPLES = 16, 4
LUCK, WRONG_KEY = 0.05, 0.05
KINDS = ("learnable", "solved", "out_of_reach", "luck", "wrong_key")
# of the dead prompts without a wrong key; the others are out of reach
SOLVED_OF_DEAD = {"digits": 0.7, "frontier": 0.1, "chain": 0.0}
RESERVED_FOR_WRONG_KEYS = 0.1  # of the candidates, whatever their difficulty
CHUNK = 500
# streams of random numbers of the sampler
TRAIN_STREAM, LUCK_STREAM, HELDOUT_STREAM, MEASURE_STREAM = range(4)


@dataclass(frozen=True)
class Row:
    item: Item
    key: str
    kind: str
    rate: float  # share of the 16 samples that the key takes for right

    def entry(self) -> dict[str, Any]:
        """The row as the pool's file holds it."""
        return {
            "prompt": self.item.prompt,
            "answer": self.key,
            "family": self.item.family,
            "length": self.item.length,
            "kind": self.kind,
            "start_pass_rate": self.rate,
        }


def pool_counts(task: str, dead: float, prompts: int) -> dict[str, int]:
    """Prompts by kind of a pool with this share of dead ones; they add up to `prompts`."""
    luck, wrong, all_dead = (round(prompts * share) for share in (LUCK, WRONG_KEY, dead))
    solved = round((all_dead - wrong) * SOLVED_OF_DEAD[task])
    learnable = prompts - luck - all_dead
    if min(learnable, all_dead - wrong) < 0:
        raise ValueError(
            f"dead: got {dead:g}, wanted {WRONG_KEY:g} to {1 - LUCK:g}, "
            "the wrong keys being dead and the luck not"
        )
    return dict(zip(KINDS, (learnable, solved, all_dead - wrong - solved, luck, wrong)))


def heldout_counts(task: str, dead: float, prompts: int) -> dict[str, int]:
    """The pool's mix without luck and wrong keys."""
    pool = pool_counts(task, dead, 100_000)
    rest = sum(pool[kind] for kind in KINDS[:3])
    solved, out = (round(prompts * pool[kind] / rest) for kind in ("solved", "out_of_reach"))
    return {"learnable": prompts - solved - out, "solved": solved, "out_of_reach": out}


def kind_of(successes: int) -> str:
    return {0: "out_of_reach", SAMPLES: "solved"}.get(successes, "learnable")


def gets_wrong_key(item: Item) -> bool:
    return random.Random(f"reserved-{item.prompt}").random() < RESERVED_FOR_WRONG_KEYS


class Successes:
    """How often the start model was right, by item and draws; kept in `path`, so that a run that
    was stopped, or another mix, goes on from there."""

    def __init__(self, sampler: Sampler, stream: int, path: Path) -> None:
        self._sampler, self._stream, self._path = sampler, stream, path
        self._known: dict[tuple[int, int], int] = {}  # (index, first draw) -> successes
        if path.is_file():
            for line in path.read_text().splitlines():
                entry = json.loads(line)
                self._known[entry["index"], entry["first_draw"]] = entry["successes"]

    def count(
        self, items: Mapping[int, Item], keys: Mapping[int, str], first_draw: int
    ) -> dict[int, int]:
        """Right among the first four draws (`first_draw` 0) or the other twelve."""
        samples = SAMPLES - first_draw if first_draw else FIRST_SAMPLES
        new = {i: item for i, item in items.items() if (i, first_draw) not in self._known}
        texts = self._sampler.responses(new, samples, stream=self._stream, first_draw=first_draw)
        found = {i: right(texts[i], keys[i]) for i in new}
        append_jsonl(
            self._path,
            *({"index": i, "first_draw": first_draw, "successes": n} for i, n in found.items()),
        )
        self._known |= {(i, first_draw): n for i, n in found.items()}
        return {i: self._known[i, first_draw] for i in items}


class Candidates:
    """Items of one side of the split, sampled in the order in which the task draws them until
    every kind is there often enough."""

    def __init__(
        self, successes: Successes, items: Iterator[Item], *, lottery: bool, keys: bool
    ) -> None:
        """`lottery`: the items are lotteries. `keys`: some get a wrong key."""
        self._successes, self._items = successes, items
        self._lottery, self._keys = lottery, keys
        self.rows: dict[str, list[Row]] = {kind: [] for kind in KINDS}
        self.sampled = 0  # items so far

    def fill(self, wanted: Mapping[str, int], limit: int, label: str) -> None:
        """Sample until `rows` has as many of each kind as wanted. Raises SystemExit when `limit`
        candidates do not hold them."""
        started = time.monotonic()
        while missing := {k: n - len(self.rows[k]) for k, n in wanted.items() if n > 0}:
            missing = {kind: n for kind, n in missing.items() if n > 0}
            if not missing:
                break
            if self.sampled >= limit:
                raise SystemExit(
                    f"error: {label}: {limit} candidates hold too few prompts, still missing "
                    f"{missing}; raise --candidates, or change --steps"
                )
            self._sample_chunk(set(missing))
            print(
                f"{label}: {self.sampled} candidates, "
                + " ".join(f"{kind} {len(self.rows[kind])}/{n}" for kind, n in wanted.items())
                + f"  {time.monotonic() - started:.0f} s",
                flush=True,
            )

    def _sample_chunk(self, wanted: set[str]) -> None:
        """Four samples an item, and the other twelve where it may be of a kind that is wanted."""
        chunk = dict(enumerate(islice(self._items, CHUNK), self.sampled))
        self.sampled += len(chunk)
        wrong = {i for i, item in chunk.items() if self._keys and gets_wrong_key(item)}
        keys = {i: wrong_key(item) if i in wrong else item.answer for i, item in chunk.items()}
        successes = self._successes.count(chunk, keys, 0)
        chunk = {
            i: item
            for i, item in chunk.items()
            if wanted & self._possible(successes[i], i in wrong)
        }
        rest = self._successes.count(chunk, keys, FIRST_SAMPLES)
        for i, item in chunk.items():
            total = successes[i] + rest[i]
            kind = kind_of(total)
            if i in wrong or self._lottery:
                kind = self._special(kind, i in wrong)
            if kind in wanted:
                self.rows[kind].append(Row(item, keys[i], kind, total / SAMPLES))

    def _special(self, kind: str, wrong: bool) -> str:
        """A wrong key must be dead, a lottery must not be; others are of no use."""
        if wrong:
            return "wrong_key" if kind == "out_of_reach" else ""
        return "luck" if kind == "learnable" else ""

    def _possible(self, successes: int, wrong: bool) -> set[str]:
        """The kinds that an item may still be of after its first samples."""
        if self._lottery:
            return {"luck"}
        if wrong:
            return {"wrong_key"} if successes == 0 else set()
        return {"learnable"} | (
            {kind_of(0)} if successes == 0 else {"solved"} if successes == FIRST_SAMPLES else set()
        )


def most(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """For each kind the largest of its counts."""
    return {kind: max(count.get(kind, 0) for count in counts) for kind in KINDS}


def choose(rows: Mapping[str, Sequence[Row]], counts: Mapping[str, int], seed: str) -> list[Row]:
    """The first of each kind, shuffled."""
    chosen = [row for kind, count in counts.items() for row in rows[kind][:count]]
    random.Random(seed).shuffle(chosen)
    return chosen


def train_rows(
    task: Task,
    sampler: Sampler,
    directory: Path,
    seed: int,
    counts: Sequence[Mapping[str, int]],
    limit: int,
) -> dict[str, list[Row]]:
    """Candidates by kind, enough for each of `counts`; what was sampled is kept in `directory`."""
    wanted = most(counts)
    successes = Successes(sampler, TRAIN_STREAM, directory / "samples_train.jsonl")
    stream = task.stream(seed, families=task.families, heldout=False)
    plain = Candidates(successes, stream, lottery=False, keys=True)
    plain.fill({kind: wanted[kind] for kind in KINDS if kind != "luck"}, limit, "pool")
    successes = Successes(sampler, LUCK_STREAM, directory / "samples_luck.jsonl")
    stream = task.stream(seed + 1, families=LOTTERY, heldout=False)
    lucky = Candidates(successes, stream, lottery=True, keys=False)
    lucky.fill({"luck": wanted["luck"]}, limit, "luck")
    return plain.rows | {"luck": lucky.rows["luck"]}


def heldout_rows(
    task: Task,
    sampler: Sampler,
    directory: Path,
    seed: int,
    counts: Sequence[Mapping[str, int]],
    limit: int,
) -> dict[str, list[Row]]:
    """Held-out candidates by kind, enough for each of `counts`."""
    successes = Successes(sampler, HELDOUT_STREAM, directory / "samples_heldout.jsonl")
    stream = task.stream(seed, families=task.families, heldout=True)
    plain = Candidates(successes, stream, lottery=False, keys=False)
    wanted = most(counts)
    plain.fill({kind: wanted[kind] for kind in KINDS[:3]}, limit, "held-out")
    return plain.rows


def balanced_rows(
    task: Task, sampler: Sampler, directory: Path, seed: int, prompts: int
) -> list[Row]:
    """The first held-out items that the task draws: all families and lengths alike."""
    successes = Successes(sampler, HELDOUT_STREAM, directory / "samples_heldout.jsonl")
    stream = task.stream(seed, families=task.families, heldout=True)
    items = dict(enumerate(islice(stream, prompts)))
    keys = {i: item.answer for i, item in items.items()}
    first, rest = (successes.count(items, keys, draw) for draw in (0, FIRST_SAMPLES))
    return [
        Row(item, item.answer, kind_of(first[i] + rest[i]), (first[i] + rest[i]) / SAMPLES)
        for i, item in items.items()
    ]
