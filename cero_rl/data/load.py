"""The configuration's data section -> the prompts to train on and the prompts to judge on, with
nothing shared between them.

In: DataConfig, seed. Out: PromptSplit. Paths are relative to the current directory. Order of work:
read (at most `limit` rows), collapse exact duplicates, split, remove from train what the held-out
set asks too, cut the held-out set to `heldout_limit`.

The fraction split ranks questions by sha256(seed, question) and holds out the first round(fraction
* questions), at least one: a function of content and seed, not of the order of rows. All prompts
that ask the same question go to the same side.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from cero_rl.config.data import DataConfig
from cero_rl.data.prompts import Prompt, question_hash
from cero_rl.data.rows import read_prompts
from cero_rl.data.sources import kind_of, read_hub, read_jsonl, read_parquet, read_procedural
from cero_rl.errors import DataError

_HELDOUT_SEED_OFFSET = 1_000_003  # a procedural held-out set must not repeat the training stream
_COUNT_LIMIT_BYTES = 32 * 1024 * 1024  # above it, reading the file just to count would be felt


@dataclass(frozen=True, slots=True)
class PromptSplit:
    """Train and held-out prompts; no question stands in both."""

    train: tuple[Prompt, ...]  # [P], in source order; a prompt id is an index into it
    heldout: tuple[Prompt, ...]
    duplicates: int = 0  # rows of `source` that repeated an earlier row's prompt and answer
    contaminated: int = 0  # train prompts removed because heldout_source asks the same


def _read(data: DataConfig, seed: int, heldout: bool) -> list[Prompt]:
    source = data.heldout_source if heldout else data.source
    assert source is not None
    split, limit = (data.heldout_split, None) if heldout else (data.split, data.limit)
    match kind_of(source, "data.heldout_source" if heldout else "data.source"):
        case "jsonl":
            rows = read_jsonl(source, limit)
        case "parquet":
            rows = read_parquet(source, limit)
        case "reasoning_gym":
            size = (data.heldout_limit if heldout else None) or data.procedural_size
            size = min(size, limit or size)
            rows = read_procedural(source, size, seed + (_HELDOUT_SEED_OFFSET if heldout else 0))
            return read_prompts(rows, source, data, "prompt", procedural=True)
        case "hub":
            rows = read_hub(
                source, data.config_name if source == data.source else None, split, limit
            )
    return read_prompts(rows, source, data, data.prompt_column, procedural=False)


def _unique(prompts: list[Prompt]) -> list[Prompt]:
    return list({prompt.key: prompt for prompt in reversed(prompts)}.values())[::-1]


def _held_questions(questions: set[str], fraction: float, seed: int) -> set[str]:
    if fraction == 0 or not questions:
        return set()
    count = max(1, round(fraction * len(questions)))
    ranked = sorted(questions, key=lambda q: hashlib.sha256(f"{seed}:{q}".encode()).digest())
    return set(ranked[:count])


def load_prompts(data: DataConfig, seed: int) -> PromptSplit:
    """Read and split. Same configuration, data and seed: the same split, on every rank.

    Raises DataError for anything wrong with a source or a row, and when nothing is left to train
    on.
    """
    rows = _read(data, seed, heldout=False)
    pool = _unique(rows)
    duplicates = len(rows) - len(pool)
    asked = [question_hash(prompt) for prompt in pool]
    if data.heldout_source is not None:
        heldout = _unique(_read(data, seed, heldout=True))[: data.heldout_limit]
        held = {question_hash(prompt) for prompt in heldout}
        contaminated = sum(question in held for question in asked)
    else:
        held = _held_questions(set(asked), data.heldout_fraction, seed)
        heldout = [prompt for prompt, question in zip(pool, asked) if question in held][
            : data.heldout_limit
        ]
        contaminated = 0
    train = tuple(prompt for prompt, question in zip(pool, asked) if question not in held)
    if not train:
        reason = (
            (
                f"all {len(pool)} prompts of {data.source} also stand in data.heldout_source "
                f"{data.heldout_source}; choose another held-out set"
            )
            if data.heldout_source is not None
            else f"{data.source} has {len(pool)} prompt(s) and data.heldout_fraction "
            f"{data.heldout_fraction} holds them all out; "
            "add prompts or set data.heldout_fraction: 0"
        )
        raise DataError(f"nothing is left to train on: {reason}")
    return PromptSplit(
        train=train, heldout=tuple(heldout), duplicates=duplicates, contaminated=contaminated
    )


def _is_small_file(source: str) -> bool:
    return Path(source).stat().st_size <= _COUNT_LIMIT_BYTES


def count_prompts(data: DataConfig) -> int | None:
    """Training prompts P for `validate`: None where knowing it would need the network or a long
    read.

    Local files up to 32 MiB are read and split for real, so the number is exact and their errors
    are raised here (DataError); a held-out hub or procedural set is not compared. For a procedural
    source it is the size less the held-out share, an upper bound because equal items collapse.
    Imports neither torch nor datasets.
    """
    kind = kind_of(data.source, "data.source")
    if kind == "reasoning_gym":
        size = min(data.procedural_size, data.limit or data.procedural_size)
        if data.heldout_source is not None or data.heldout_fraction == 0:
            return size
        return size - max(1, round(data.heldout_fraction * size))
    if kind == "hub" or not _is_small_file(data.source):
        return None
    if data.heldout_source is not None:
        other = kind_of(data.heldout_source, "data.heldout_source")
        if other in ("hub", "reasoning_gym"):
            data = data.model_copy(update={"heldout_source": None, "heldout_fraction": 0.0})
        elif not _is_small_file(data.heldout_source):
            return None
    return len(load_prompts(data, seed=0).train)
