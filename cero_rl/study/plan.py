"""What a study file says, and the runs that it consists of.

    recipe: recipes/frontier_cpu.yaml     of every run
    baseline: uniform                     the arm that the others are compared with
    results: docs/bench/mine.jsonl        one line a finished run
    seeds: [0, 1, 2]
    budgets: [25600, 51200]               rollouts
    settings: {round: 128, warmup: 0.15}  of every run
    pools: {mine: {data.source: ...}}     of a pool
    arms: {uniform: {...}, mine: {...}}   of an arm

Settings are dotted keys of the configuration, and six of the study's own: `round`, rollouts of a
round, by which a budget becomes a number of rounds; `warmup`, the share of these that the learning
rate rises over; `capacity`, the most rollouts of one, in rounds; `points`, evaluations along a run;
`recipe`, in the place of the study's; `sha256`, the digest of the file `data.source`. Paths are
relative to the current directory. Raises StudyError.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cero_rl.errors import ConfigError, first_line

# what a run of a study need not write
QUIET = {
    "checkpoint.every_steps": 0,
    "checkpoint.export": False,
    "logging.tensorboard": False,
    "logging.sample_dumps": False,
}
POINTS = 5  # evaluations along a run, the last of them final, where `points` says nothing else
_KEYS = {"recipe", "settings", "pools", "arms", "seeds", "budgets", "baseline", "results"}

Settings = Mapping[str, Any]
Row = dict[str, Any]


class StudyError(ConfigError):
    """The study file or a run of it cannot be used; the message says what to change."""


@dataclass(frozen=True)
class Study:
    name: str
    recipe: str
    settings: Settings
    pools: Mapping[str, Settings]
    arms: Mapping[str, Settings]
    seeds: list[int]
    budgets: list[int]
    baseline: str
    results: Path


@dataclass(frozen=True)
class Chosen:
    """A part of a study; None: all of it."""

    seeds: Sequence[int] | None = None
    budgets: Sequence[int] | None = None
    pools: Sequence[str] | None = None
    arms: Sequence[str] | None = None


@dataclass(frozen=True)
class Job:
    """One training run."""

    pool: str
    arm: str
    seed: int
    budget: int
    settings: Settings

    @property
    def digest(self) -> str:
        text = json.dumps(sorted(self.settings.items()), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def key(self) -> tuple[str, str, int, int, str]:
        return (self.pool, self.arm, self.seed, self.budget, self.digest)

    @property
    def name(self) -> str:
        return f"{self.pool}-{self.arm}-{self.seed}-{self.budget}"


def read_study(path: Path) -> Study:
    """Raises StudyError for a file that is none."""
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        said = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise StudyError(f"{path}: cannot be read as a study ({said}); give a YAML file") from None
    if not isinstance(given, dict) or (odd := set(given) ^ _KEYS):
        found = sorted(map(str, odd)) if isinstance(given, dict) else type(given).__name__
        raise StudyError(f"{path}: wanted the keys {sorted(_KEYS)}, odd ones: {found}")
    for key in ("settings", "pools", "arms"):
        inner = given[key] if key == "settings" else (given[key] or {}).values()
        mappings = [given[key], *([] if key == "settings" else inner)]
        if not all(isinstance(each, dict) for each in mappings) or (
            key != "settings" and not given[key]
        ):
            raise StudyError(f"{path}: {key}: wanted a mapping of settings")
    for key in ("seeds", "budgets"):
        values = given[key]
        if not isinstance(values, list) or not values or not all(map(_is_count, values)):
            raise StudyError(f"{path}: {key}: got {values!r}, wanted a list of integers >= 0")
        if len(set(values)) != len(values):
            raise StudyError(f"{path}: {key}: one stands twice in {values}; keep one")
    if given["baseline"] not in given["arms"]:
        raise StudyError(f"{path}: baseline {given['baseline']!r} is none of its arms")
    return Study(name=path.stem, **{**given, "results": Path(str(given["results"]))})


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def refuse_unknown(study: Study, chosen: Chosen) -> None:
    """Raises StudyError for an arm or a pool that the study does not have."""
    for name, given, known in (
        ("arms", chosen.arms, study.arms),
        ("pools", chosen.pools, study.pools),
    ):
        for one in given or ():
            if one not in known:
                raise StudyError(f"--{name} {one}: the study has {', '.join(known)}")


def refuse_other_data(jobs: Sequence[Job]) -> None:
    """Raises StudyError for a pool whose file is missing, or is not the one that the study names:
    its rows would stand beside those of other prompts."""
    for pool, job in {job.pool: job for job in jobs}.items():
        source = job.settings.get("data.source")
        if source is None or "round" not in job.settings:
            missing = "data.source" if source is None else "round"
            raise StudyError(f"pool {pool}, arm {job.arm}: {missing} is missing; set it")
        if not Path(source).is_file():
            raise StudyError(
                f"pool {pool}: {source} is missing; the study's file says what makes it"
            )
        found = hashlib.sha256(Path(source).read_bytes()).hexdigest()
        wanted = job.settings.get("sha256", found)
        if found != wanted:
            raise StudyError(
                f"pool {pool}: the SHA-256 of {source} is {found}, wanted {wanted}; another CPU "
                "may sample another pool: name its digest in a study of your own"
            )


def jobs_of(study: Study, chosen: Chosen) -> Iterator[Job]:
    """Seed after seed, so that a study that is cut short has whole pairs."""
    for seed in chosen.seeds or study.seeds:
        for budget in chosen.budgets or study.budgets:
            for pool in chosen.pools or study.pools:
                for arm in chosen.arms or study.arms:
                    settings = {**study.settings, **study.pools[pool], **study.arms[arm]}
                    yield Job(pool, arm, seed, budget, settings)


def settings_of(job: Job) -> dict[str, Any]:
    """Configuration keys of one run: rounds, warm-up and evaluations follow from the budget."""
    settings = {**QUIET, **job.settings}
    for key in ("recipe", "sha256"):
        settings.pop(key, None)
    per_round = settings.pop("round")
    rounds = job.budget // per_round
    if shares := settings.pop("capacity", None):
        settings["scheduler.capacity_rollouts"] = shares * per_round
    if share := settings.pop("warmup", None):
        settings["optimizer.warmup_steps"] = round(share * rounds)
    settings |= {"budget.total_rollouts": job.budget, "scheduler.rounds": rounds}
    points = settings.pop("points", POINTS)
    settings.setdefault("evaluation.every_steps", max(1, rounds // points))
    return {**settings, "seed": job.seed, "name": job.name}


def read_rows(path: Path) -> list[Row]:
    """Results so far. A last line that a kill cut off is no result; raises StudyError for another
    that is none."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not {"pool", "arm", "seed", "budget", "digest", "accuracy"} <= row.keys():
                raise ValueError("not a result of a study")
        except (ValueError, AttributeError) as error:
            if number == len(lines):
                continue
            raise StudyError(
                f"{path}, line {number}: {first_line(error)}; name another file in results"
            ) from None
        rows.append(row)
    return rows
