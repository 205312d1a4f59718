"""Sample dumps: what the model was asked, what it answered and what that was worth, for a person to
read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cero_rl.data.prompts import Prompt
from cero_rl.files.jsonl import append_jsonl
from cero_rl.rollout.collector import Rollouts
from cero_rl.types import Episode


def dump_samples(
    run_dir: Path, step: int, rollouts: Rollouts, prompts: Sequence[Prompt], count: int
) -> None:
    """Append the first completion of up to `count` groups, spread evenly over this rank's groups,
    to samples.jsonl."""
    total = len(rollouts.groups)
    entries: list[dict[str, Any]] = []
    for index in (
        np.unique(np.linspace(0, total - 1, min(count, total)).astype(int)) if total else ()
    ):
        group, rewards = rollouts.groups[index], rollouts.rewards[index]
        if not group.completions:
            continue
        prompt, first = prompts[group.prompt_id], group.completions[0]
        known = rewards[~np.isnan(rewards)]
        entries.append(
            {
                "step": step,
                "prompt_key": prompt.key,
                "prompt": prompt.content,
                "completion": first.text,
                "answer": prompt.answer,
                "reward": None if np.isnan(rewards[0]) else float(rewards[0]),
                "group_reward_mean": float(known.mean()) if known.size else None,
                "group_rollouts": len(group.completions),
                "finish_reason": first.finish_reason,
                "policy_version": first.policy_version,
                **_of_episode(first.episode),
            },
        )
    append_jsonl(run_dir / "samples.jsonl", *entries)


def _of_episode(episode: Episode | None) -> dict[str, Any]:
    if episode is None:
        return {}
    failure = {"failure": episode.failure} if episode.failure else {}
    return {"turns": episode.turns, "stop": episode.stop, **failure}
