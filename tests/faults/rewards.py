"""Reward functions of the tests in this folder."""

from __future__ import annotations


def always(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
    return [1.0] * len(completions)
