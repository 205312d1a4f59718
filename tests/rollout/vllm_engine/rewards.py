"""Reward functions of the tests in this folder: one that splits almost every group, and one that
looks at the prompt alone."""

from __future__ import annotations


def odd_length(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
    return [float(len(text) % 2) for text in completions]


def by_prompt(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
    return [float(sum(map(ord, str(prompt))) % 3 == 0) for prompt in prompts]
