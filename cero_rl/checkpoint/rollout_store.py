"""Generated rollouts that no step has learned from yet, as arrays: with them a resumed run goes on
with the very same tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np
import numpy.typing as npt

from cero_rl.rollout.protocol import RolloutRequest
from cero_rl.types import Completion, Episode, RolloutGroup

_PREFIX = "ahead."
_REASONS = ("stop", "length")


def _edges(sizes: Sequence[int]) -> npt.NDArray[np.int64]:
    return np.cumsum([0, *sizes], dtype=np.int64)


def pack_groups(groups: Sequence[RolloutGroup]) -> dict[str, npt.NDArray[np.generic]]:
    """Arrays that `unpack_groups` turns back into the same groups; ragged fields as values and
    edges."""
    completions = [c for g in groups for c in g.completions]
    texts = [c.text.encode() for c in completions]
    none = np.zeros(0, dtype=np.int64)
    packed: dict[str, npt.NDArray[np.generic]] = {
        "prompt_ids": np.array([g.prompt_id for g in groups], dtype=np.int64),
        "group_edges": _edges([len(g.completions) for g in groups]),
        "token_edges": _edges([len(c.token_ids) for c in completions]),
        "tokens": np.concatenate([none, *(c.token_ids for c in completions)]),
        "logps": np.concatenate(
            [none.astype(np.float32), *(c.logp_behavior for c in completions)]
        ).astype(np.float32),
        "text_edges": _edges([len(t) for t in texts]),
        "texts": np.frombuffer(b"".join(texts), dtype=np.uint8),
        "reasons": np.array([_REASONS.index(c.finish_reason) for c in completions], dtype=np.int64),
        "versions": np.array([c.policy_version for c in completions], dtype=np.int64),
    }
    if any(c.episode is not None for c in completions):
        episodes = json.dumps([c.episode and asdict(c.episode) for c in completions]).encode()
        packed["sampled"] = np.concatenate(
            [none.astype(np.bool_), *(c.trains for c in completions)]
        )
        packed["episodes"] = np.frombuffer(episodes, dtype=np.uint8)
    return {_PREFIX + name: value for name, value in packed.items()}


def unpack_groups(
    arrays: Mapping[str, npt.NDArray[np.generic]], requests: Sequence[RolloutRequest]
) -> list[RolloutGroup] | None:
    """The groups for `requests`, or None if there are none in `arrays` or they answer other
    requests."""
    if _PREFIX + "prompt_ids" not in arrays:
        return None
    at = {
        name.removeprefix(_PREFIX): value
        for name, value in arrays.items()
        if name.startswith(_PREFIX)
    }
    if at["prompt_ids"].tolist() != [r.prompt_id for r in requests]:
        return None
    texts = at["texts"].tobytes()
    episodes: list[Episode | None] = [None] * len(at["reasons"])
    if "episodes" in at:
        told = json.loads(at["episodes"].tobytes())
        episodes = [None if values is None else Episode(**values) for values in told]
    completions = []
    for i, (reason, version) in enumerate(zip(at["reasons"].tolist(), at["versions"].tolist())):
        first, last = at["token_edges"][i : i + 2].tolist()
        start, end = at["text_edges"][i : i + 2].tolist()
        tokens, logps = (
            at["tokens"][first:last].astype(np.int64),
            at["logps"][first:last].astype(np.float32),
        )
        completions.append(
            Completion(
                tokens,
                logps,
                texts[start:end].decode(),
                "stop" if reason == 0 else "length",
                version,
                at["sampled"][first:last].astype(np.bool_) if "sampled" in at else None,
                episodes[i],
            )
        )
    edges = at["group_edges"].tolist()
    return [
        RolloutGroup(r.prompt_id, r.prompt_tokens, tuple(completions[edges[j] : edges[j + 1]]))
        for j, r in enumerate(requests)
    ]
