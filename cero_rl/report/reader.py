"""A run's directory as arrays.

In: runs/NAME as training leaves it, also in the middle of a run or cut off by a kill. Out: `Run`.
What is missing or cannot be read is counted in `Run.notes`, never passed over in silence. Raises
ConfigError for a directory that is no run's or another version's, DataError for a run without a
step.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cero_rl.config import Config, load_config
from cero_rl.config.base import Section
from cero_rl.data.load import read_local
from cero_rl.data.prompts import Prompt
from cero_rl.errors import CeroError, ConfigError, DataError, first_line
from cero_rl.files.plain import refuse_link
from cero_rl.scheduler.posterior import Floats
from cero_rl.scheduler.sizes import Ids

RESOLVED = "config.resolved.yaml"
_COUNTS = ("prompt_ids", "generated", "trials", "successes")
_BELIEFS = ("worth", "expected", "slope")
RESERVED = ("", "probe", "floor")  # what a reserve put first in its round (scheduler/reasons.py)
_MOST_LABELS = 24  # values of a column that still names kinds of prompts
_NO_LABEL = ("answer",)

Line = dict[str, Any]


@dataclass(frozen=True)
class Groups:
    """Every group of the run, in the order of its steps; N of them."""

    step: Ids  # [N]
    round: Ids  # [N]
    prompt: Ids  # [N]
    generated: Ids  # [N] rollouts
    trials: Ids  # [N] of them with a reward
    successes: Floats  # [N] sum of their rewards
    worth: Floats  # [N] of a rollout, as the allocator believed before; nan: not written
    expected: Floats  # [N] success rate, as it believed before; nan: not written
    slope: Floats  # [N] of its utility, what a price is held against; nan: not written
    reserved: Ids  # [N] index into RESERVED

    @property
    def knows_beliefs(self) -> bool:
        return bool(np.isfinite(self.worth).any())


@dataclass(frozen=True)
class Run:
    """A run's directory, read once: its configuration, every step's metrics, every group, and what
    could not be read (`notes`)."""

    path: Path
    config: Config
    steps: Sequence[Line]  # of metrics.jsonl, one an optimizer step
    evaluations: Sequence[Line]  # its lines with a held-out accuracy, the last of them final
    groups: Groups
    samples: Sequence[Line]
    ranks: int
    finished: bool
    num_prompts: int  # P; where no file says it, those that were ever sampled
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)  # column -> [P] kinds
    keys: Sequence[str] = ()  # [P] of the prompts, in pool order, where they are known
    prompts: Sequence[Prompt] = ()  # [P] themselves, where the data is still there
    notes: Sequence[str] = ()

    @property
    def name(self) -> str:
        return self.path.resolve().name

    def column(self, name: str) -> Floats:
        """f64[steps] of a metric; nan where a step has none."""
        return np.array([number(line.get(name)) for line in self.steps])


def number(value: object) -> float:
    """nan for what is no number."""
    real = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if real else math.nan  # pyright: ignore[reportArgumentType]


def read_run(path: Path) -> Run:
    """A run's directory, finished, running or cut off by a kill. Lines that cannot be read and
    files that are missing are counted in `Run.notes`. Raises ConfigError for a directory that is no
    run's or another version's, DataError for a run without a finished step."""
    notes: list[str] = []
    config = _config(path)
    lines = _lines(path / "metrics.jsonl", notes)
    steps = [line for line in lines if "reward" in line and "step" in line]
    evaluations = [line for line in lines if any(key.startswith("eval/avg@") for key in line)]
    entries = _lines(path / "evidence.jsonl", notes)
    if not steps or not entries:
        raise DataError(
            f"{path}: has no finished step yet (metrics.jsonl: {len(steps)} steps, evidence.jsonl: "
            f"{len(entries)}); wait for the first one"
        )
    groups = _groups(path / "evidence.jsonl", entries)
    if not groups.knows_beliefs:
        notes.append(
            "evidence.jsonl does not hold what the allocator believed (an older version wrote it): "
            "no premise check, no calibration"
        )
    samples = _lines(path / "samples.jsonl", notes, optional=True)
    keys = _pool_keys(path / "posterior.parquet", notes)
    prompts = _prompts(config, notes)
    if not keys and prompts and _same_order(prompts, groups, samples):
        keys = [prompt.key for prompt in prompts]  # a running run: the file's order is the pool's
    pool = _in_pool_order(prompts, keys, notes)
    return Run(
        path=path,
        config=config,
        steps=steps,
        evaluations=evaluations,
        groups=groups,
        samples=samples,
        ranks=_ranks(path),
        finished=any(line.get("final") is True for line in lines),
        num_prompts=max(len(keys), int(groups.prompt.max()) + 1),
        labels=_labels(pool),
        keys=tuple(keys),
        prompts=pool,
        notes=tuple(notes),
    )


def read_groups(path: Path) -> tuple[Groups, list[str]]:
    """The groups of a run's directory alone, and notes of what could not be read. Raises DataError
    where there is none."""
    notes: list[str] = []
    evidence = path / "evidence.jsonl"
    entries = _lines(evidence, notes)
    if not entries:
        raise DataError(f"{evidence}: holds no group of rollouts; wait for the first step")
    return _groups(evidence, entries), notes


def _config(path: Path) -> Config:
    if not path.is_dir():
        what = "is no directory" if path.exists() else "does not exist"
        raise ConfigError(f"{path}: {what}; give a run's directory, e.g. runs/quickstart")
    if not (path / RESOLVED).is_file():
        raise ConfigError(
            f"{path}: has no {RESOLVED}, so it is no run's directory; give one, e.g. "
            "runs/quickstart"
        )
    refuse_link(path / RESOLVED, ConfigError)
    try:
        return load_config(path / RESOLVED)
    except ConfigError as error:
        reason = first_line(error).removeprefix(f"{path / RESOLVED}: ")
        raise ConfigError(
            f"{path / RESOLVED}: is not of this version of cero_rl ({reason}); use the version "
            "that wrote it"
        ) from None


def _lines(path: Path, notes: list[str], *, optional: bool = False) -> list[Line]:
    """Objects of a JSON lines file; lines that are none are counted."""
    refuse_link(path, DataError)
    if not path.is_file():
        if optional:
            notes.append(f"{path.name} is not there")
        return []
    try:
        text = path.read_bytes().decode("utf-8", "replace")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check it") from None
    found: list[Line] = []
    bad = 0
    for line in text.split("\n"):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            entry = None
        if isinstance(entry, dict):
            found.append(entry)
        else:
            bad += 1
    if bad:
        notes.append(f"{path.name}: {bad} lines could not be read and are left out")
    return found


def _groups(path: Path, entries: list[Line]) -> Groups:
    columns: dict[str, list[np.ndarray]] = {name: [] for name in (*_COUNTS, *_BELIEFS)}
    steps, rounds, reserved = [], [], []
    for entry in entries:
        try:
            parts = {name: np.asarray(entry[name], dtype=np.float64) for name in _COUNTS}
            size = parts["prompt_ids"].size
            for name in _BELIEFS:
                given = entry.get(name, [math.nan] * size)
                parts[name] = np.asarray(given, dtype=np.float64)
            if any(part.shape != (size,) for part in parts.values()):
                raise ValueError("its lists differ in length")
            wins, tries = parts["successes"], parts["trials"]
            if not bool((wins <= tries + 1e-6).all()) or (parts["prompt_ids"] < 0).any():
                raise ValueError("more successes than trials, or prompt ids below 0")
            step, at = int(entry["step"]), int(entry["round"])
            first = np.zeros(size, dtype=np.int64)
            for index, name in enumerate(RESERVED[1:], 1):
                if name in entry:
                    first[np.isin(parts["prompt_ids"], entry[name])] = index
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            said = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise ConfigError(
                f"{path}: is not of this version of cero_rl (the line of step "
                f"{str(entry.get('step'))[:20]}: {said}); use the version that wrote it"
            ) from None
        for name, part in parts.items():
            columns[name].append(part)
        steps.append(np.full(size, step))
        rounds.append(np.full(size, at))
        reserved.append(first)
    whole = {name: np.concatenate(parts) for name, parts in columns.items()}
    if not whole["prompt_ids"].size:
        raise DataError(f"{path}: holds no group of rollouts; wait for the first step")
    counts = {name: whole[name].astype(np.int64) for name in _COUNTS[:3]}
    return Groups(
        np.concatenate(steps).astype(np.int64),
        np.concatenate(rounds).astype(np.int64),
        counts["prompt_ids"],
        counts["generated"],
        counts["trials"],
        whole["successes"],
        whole["worth"],
        whole["expected"],
        whole["slope"],
        np.concatenate(reserved),
    )


def _ranks(path: Path) -> int:
    """Of the newest checkpoint; 1 where there is none."""
    for manifest in sorted(path.glob("checkpoints/step_*/MANIFEST.json"), reverse=True):
        try:
            return max(1, int(json.loads(manifest.read_text(encoding="utf-8"))["world_size"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return 1


def _pool_keys(path: Path, notes: list[str]) -> list[str]:
    """The pool's keys in its order, which a finished run knows."""
    refuse_link(path, DataError)
    if not path.is_file():
        return []
    from pyarrow import ArrowException, parquet

    try:
        return parquet.read_table(path, columns=["key"])["key"].to_pylist()
    except (ArrowException, OSError, KeyError) as error:
        notes.append(f"posterior.parquet cannot be read ({first_line(error)})")
        return []


def _prompts(config: Config, notes: list[str]) -> tuple[Prompt, ...]:
    try:
        split = read_local(config.data, config.seed)
    except CeroError as error:
        notes.append(f"labels of the prompts are not known: {first_line(error)}")
        return ()
    if split is None:
        notes.append("labels of the prompts are not known: data.source is no small local file")
        return ()
    return split.train


def _in_pool_order(
    prompts: Sequence[Prompt], keys: Sequence[str], notes: list[str]
) -> Sequence[Prompt]:
    if not prompts:
        return ()
    by_key = {prompt.key: prompt for prompt in prompts}
    if not keys or any(key not in by_key for key in keys):
        notes.append("labels of the prompts are not known: data.source is not what the run read")
        return ()
    return tuple(by_key[key] for key in keys)


def _labels(pool: Sequence[Prompt]) -> dict[str, Sequence[str]]:
    """Columns of few values, in pool order."""
    found: dict[str, Sequence[str]] = {}
    for name in pool[0].columns if pool else ():
        values = [str(prompt.columns.get(name)) for prompt in pool]
        if name not in _NO_LABEL and 1 < len(set(values)) <= _MOST_LABELS:
            found[name] = values
    if not found and len({prompt.source for prompt in pool}) > 1:
        found["source"] = [prompt.source for prompt in pool]
    return found


def _same_order(prompts: Sequence[Prompt], groups: Groups, samples: Sequence[Line]) -> bool:
    if int(groups.prompt.max()) >= len(prompts) or not samples:
        return False
    at = {prompt.key: index for index, prompt in enumerate(prompts)}
    of_step: dict[int, set[int]] = {}
    for step in {line.get("step") for line in samples}:
        if isinstance(step, int):
            of_step[step] = set(groups.prompt[groups.step == step].tolist())
    return all(
        at.get(str(line.get("prompt_key")), -1) in of_step.get(line.get("step", -1), set())
        for line in samples
    )


def flat(section: Section, prefix: str = "") -> dict[str, str]:
    """Every key of a configuration, dotted, as text."""
    found: dict[str, str] = {}
    for name, value in section.model_dump(mode="json").items():
        _flatten(f"{prefix}{name}", value, found)
    return found


def _flatten(key: str, value: object, into: dict[str, str]) -> None:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            _flatten(f"{key}.{name}", inner, into)
    else:
        into[key] = json.dumps(value, ensure_ascii=False)
