"""The rewards of the benchmark of trainers, in TRL's signature, which both trainers read."""

from __future__ import annotations

from itertools import count

_CALLS = count()


def half(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
    """1.0 for every other completion: each group has both, so each of its tokens is trained."""
    return [float(next(_CALLS) % 2) for _ in completions]


def exact(
    prompts: list[str], completions: list[str], answer: list[str], **columns: object
) -> list[float]:
    """1.0 where the completion is the answer."""
    return [float(text.strip() == key) for text, key in zip(completions, answer, strict=True)]
