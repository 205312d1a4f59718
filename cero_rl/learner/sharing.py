"""Which rollouts are packed behind one copy of their prompt, and how such a pack is laid out.

A part is rollouts of one group that stand in one micro-batch behind their prompt; a rollout alone
is packed as it always was, so groups of one cost nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_Ints = npt.NDArray[np.int64]
# "auto" shares where at least this share of a group's tokens need not be processed; a group that
# saves less gains less than its split attention may cost
LEAST_SAVED = 0.1
LEAST_PROMPT = 32  # tokens; "auto" packs groups of shorter prompts as they were


@dataclass(frozen=True)
class Segments:
    """Segments of one micro-batch: tokens start:end of the batch, at positions from `position`.
    `parent`: the segment that each continues, or itself."""

    start: _Ints  # [S]
    end: _Ints  # [S]
    position: _Ints  # [S]
    rollout: _Ints  # [S]
    parent: _Ints  # [S]


def parts_of(
    chosen: _Ints,
    group_of: _Ints,
    prompt: _Ints,
    response: _Ints,
    *,
    longest_shared: int,
    if_worth: bool,
    max_tokens: int,
) -> list[_Ints]:
    """Rollouts `chosen` (ascending) in parts; prompt and response: tokens of every rollout [R].

    A group is shared where prompt and response fit into `longest_shared` tokens and, `if_worth`, it
    saves enough. One that does not fit into `max_tokens` becomes several parts, each with the
    prompt; a rollout that does not fit goes alone.
    """
    parts: list[_Ints] = []
    runs = np.split(chosen, np.flatnonzero(np.diff(group_of[chosen])) + 1) if len(chosen) else []
    for run in runs:
        once = int(prompt[run[0]])
        saved = (len(run) - 1) * once
        worth = once >= LEAST_PROMPT and saved >= LEAST_SAVED * (saved + once + response[run].sum())
        fits = once + int(response[run].max()) <= longest_shared
        if saved == 0 or not fits or (if_worth and not worth):
            parts += list(run[:, None])
        else:
            parts += _within(run, once, response, max_tokens)
    return parts


def _within(run: _Ints, prompt: int, response: _Ints, max_tokens: int) -> list[_Ints]:
    """A group cut into parts of at most max_tokens, longest responses first."""
    ordered = run[np.argsort(-response[run], kind="stable")]
    cuts, size = [0], prompt
    for position, tokens in enumerate(response[ordered].tolist()):
        if position > cuts[-1] and size + tokens > max_tokens:
            cuts.append(position)
            size = prompt
        size += tokens
    return np.split(ordered, cuts[1:])


def tokens_of(part: _Ints, prompt: _Ints, response: _Ints) -> int:
    """Of a part, with its prompt once."""
    return int(prompt[part[0]] + response[part].sum())


def segments_of(parts: list[_Ints], starts: _Ints, prompt: _Ints, response: _Ints) -> Segments:
    """starts i64[R]: where each rollout's prompt begins in the batch."""
    rows: list[tuple[int, int, int, int, int]] = []
    for part in parts:
        first, own = part[0], len(rows)
        begin, length = int(starts[first]), int(prompt[first])
        if len(part) == 1:
            rows.append((begin, begin + length + int(response[first]), 0, int(first), own))
            continue
        rows.append((begin, begin + length, 0, int(first), own))
        for rollout in part.tolist():
            begin = int(starts[rollout]) + length
            rows.append((begin, begin + int(response[rollout]), length, rollout, own))
    return Segments(*np.array(rows, dtype=np.int64).reshape(-1, 5).T)
