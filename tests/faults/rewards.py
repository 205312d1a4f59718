"""Reward functions of the tests in this folder."""

from __future__ import annotations


def always(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
    return [1.0] * len(completions)


def breaks(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
    return [float(columns["solutoin"] == c) for c in completions]  # there is no such column


def abstains(
    prompts: list[str], completions: list[str], answer: list[str], **columns: object
) -> list[float | None]:
    """Only what is right is judged."""
    return [1.0 if c == a else None for c, a in zip(completions, answer)]
