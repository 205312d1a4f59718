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
from dataclasses import dataclass, replace
from pathlib import Path

from cero_rl.config.data import DataConfig
from cero_rl.data.files import files_of
from cero_rl.data.prompts import Prompt, question_hash
from cero_rl.data.rows import read_prompts
from cero_rl.data.sources import kind_of, read_files, read_hub, read_procedural
from cero_rl.errors import DataError

_HELDOUT_SEED_OFFSET = 1_000_003  # a procedural held-out set must not repeat the training stream
_COUNT_LIMIT_BYTES = 32 * 1024 * 1024  # above it, reading the file just to count would be felt


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Rows that a source holds and a run does not use, for one reason."""

    why: str  # a word or two, such as "duplicate"
    count: int
    first: str  # the first of them, in words


@dataclass(frozen=True, slots=True)
class PromptSplit:
    """Train and held-out prompts; no question stands in both."""

    train: tuple[Prompt, ...]  # [P], in source order; a prompt id is an index into it
    heldout: tuple[Prompt, ...]
    rows: int = 0  # read from `source`
    heldout_rows: int = 0  # read from `heldout_source`
    duplicates: int = 0  # rows of `source` that repeated an earlier row's prompt and answer
    contaminated: int = 0  # train prompts removed because heldout_source asks the same
    left_out: tuple[LeftOut, ...] = ()  # of both sources, in the order of work


def left_out_lines(split: PromptSplit, overlong: LeftOut | None = None) -> list[str]:
    """What became of the rows, for the user: one line of counts, then one for each reason with its
    first row."""
    reasons = [*split.left_out, *([overlong] if overlong is not None and overlong.count else [])]
    said = {"duplicate": split.duplicates, "contaminated": split.contaminated}
    if overlong is not None:
        said[overlong.why] = overlong.count
    counts = ", ".join(f"{count} {why}" for why, count in said.items())
    heldout = f" and {split.heldout_rows} held-out rows" if split.heldout_rows else ""
    return [
        f"{split.rows} rows{heldout} read; left out: {counts}",
        *(f"{each.count} {each.why}; the first: {each.first}" for each in reasons),
    ]


def _read(data: DataConfig, seed: int, heldout: bool) -> list[Prompt]:
    source = data.heldout_source if heldout else data.source
    assert source is not None
    field = "data.heldout_source" if heldout else "data.source"
    split, limit = (data.heldout_split, None) if heldout else (data.split, data.limit)
    match kind_of(source, field, split):
        case "files":
            rows = read_files(files_of(source, split, field) or [], limit)
        case "reasoning_gym":
            size = (data.heldout_limit if heldout else None) or data.procedural_size
            size = min(size, limit or size)
            rows = read_procedural(source, size, seed + (_HELDOUT_SEED_OFFSET if heldout else 0))
            return read_prompts(rows, source, data, "prompt", procedural=True)
        case "hub":
            config_name = data.config_name if not heldout or source == data.source else None
            if heldout:
                config_name = data.heldout_config_name or config_name
            rows = read_hub(source, config_name, split, limit)
    if heldout:
        data = data.model_copy(
            update={"answer_column": data.heldout_answer_column or data.answer_column}
        )
    column = (data.heldout_prompt_column if heldout else None) or data.prompt_column
    return read_prompts(rows, source, data, column, procedural=False)


def _unique(prompts: list[Prompt], field: str) -> tuple[list[Prompt], list[LeftOut]]:
    """The first of equal prompts, in source order, and what that leaves out: plain repeats, and
    those that differ in another column (tests, say), which is lost with them."""
    kept: dict[str, Prompt] = {}
    repeats: list[tuple[Prompt, Prompt]] = []
    for prompt in prompts:
        if (first := kept.setdefault(prompt.key, prompt)) is not prompt:
            repeats.append((prompt, first))
    same = [pair for pair in repeats if pair[0].columns == pair[1].columns]
    other = [pair for pair in repeats if pair[0].columns != pair[1].columns]
    said = []
    if same:
        prompt, first = same[0]
        said.append(LeftOut("exact duplicate", len(same), f"{prompt.where} repeats {first.where}"))
    if other:
        prompt, first = other[0]
        names = dict.fromkeys((*first.columns, *prompt.columns))
        differing = [n for n in names if first.columns.get(n) != prompt.columns.get(n)]
        said.append(
            LeftOut(
                "duplicate in prompt and answer alone",
                len(other),
                f"{prompt.where} repeats {first.where} with another {', '.join(differing)}, which "
                f"is not used; change the prompt, or put it into the answer ({field})",
            )
        )
    return list(kept.values()), said


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
    pool, left_out = _unique(rows, "data.answer_column")
    duplicates = len(rows) - len(pool)
    asked = [question_hash(prompt) for prompt in pool]
    contaminated = heldout_rows = 0
    if data.heldout_source is not None:
        given = _read(data, seed, heldout=True)
        heldout_rows = len(given)
        heldout, repeated = _unique(given, "data.answer_column")
        left_out += [replace(each, why=f"held-out {each.why}") for each in repeated]
        heldout = heldout[: data.heldout_limit]
        held = {question_hash(prompt): prompt for prompt in reversed(heldout)}
        both = [prompt for prompt, question in zip(pool, asked) if question in held]
        contaminated = len(both)
        if both:
            twin = held[question_hash(both[0])]
            first = f"{both[0].where} asks what {twin.where} asks"
            left_out.append(LeftOut("contaminated", contaminated, first))
    else:
        held = _held_questions(set(asked), data.heldout_fraction, seed)
        aside = [prompt for prompt, question in zip(pool, asked) if question in held]
        heldout = aside[: data.heldout_limit]
        if len(aside) > len(heldout):
            beyond = aside[len(heldout)]
            words = f"{beyond.where}; held out and not needed, so neither trained on nor judged"
            left_out.append(LeftOut("beyond data.heldout_limit", len(aside) - len(heldout), words))
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
        train=train,
        heldout=tuple(heldout),
        rows=len(rows),
        heldout_rows=heldout_rows,
        duplicates=duplicates,
        contaminated=contaminated,
        left_out=tuple(left_out),
    )


def _are_small(source: str, split: str, field: str) -> bool:
    files = files_of(source, split, field) or []
    return sum(Path(file).stat().st_size for file in files) <= _COUNT_LIMIT_BYTES


def count_prompts(data: DataConfig) -> int | None:
    """Training prompts P for `validate`: None where knowing it would need the network or a long
    read.

    Local files up to 32 MiB are read and split for real, so the number is exact and their errors
    are raised here (DataError); a held-out hub or procedural set is not compared. For a procedural
    source it is the size less the held-out share, an upper bound because equal items collapse.
    Imports neither torch nor datasets.
    """
    if (split := read_local(data)) is not None:
        return len(split.train)
    if kind_of(data.source, "data.source", data.split) != "reasoning_gym":
        return None
    size = min(data.procedural_size, data.limit or data.procedural_size)
    if data.heldout_source is not None or data.heldout_fraction == 0:
        return size
    return size - max(1, round(data.heldout_fraction * size))


def read_sample(data: DataConfig, rows: int, seed: int = 0) -> tuple[Prompt, ...]:
    """The first prompts of a source that `read_local` leaves alone; none of one on the network."""
    if kind_of(data.source, "data.source", data.split) == "hub":
        return ()
    first = {"limit": min(rows, data.limit or rows), "heldout_source": None}
    return load_prompts(data.model_copy(update={**first, "heldout_fraction": 0.0}), seed).train


def read_local(data: DataConfig, seed: int = 0) -> PromptSplit | None:
    """The split where files of at most 32 MiB hold it, as `load_prompts` makes it; None where
    there are others. A held-out hub or procedural set is left aside."""
    kind = kind_of(data.source, "data.source", data.split)
    if kind != "files" or not _are_small(data.source, data.split, "data.source"):
        return None
    if data.heldout_source is not None:
        field = "data.heldout_source"
        if kind_of(data.heldout_source, field, data.heldout_split) != "files":
            data = data.model_copy(update={"heldout_source": None, "heldout_fraction": 0.0})
        elif not _are_small(data.heldout_source, data.heldout_split, field):
            return None
    return load_prompts(data, seed)
