"""The process that runs reward functions: `python -m cero_rl.rewards.worker`, started and killed
by `pool`.

One JSON object a line on stdin, one on stdout. First {"function", "kwargs", "gold",
"memory_limit_mb", "parent"} -> {"ready": true, "batched", "whole_groups"} or {"fatal"}; then
{"items": [...]} -> {"values": [...], "extras": [...], "dropped"}, {"error"} (these items are
missing) or {"fatal"} (the run must end). No pickles:
what a worker answers is data. Plug-in output goes to /dev/null. The process dies with its parent,
and an item that exhausts its memory ends it.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from cero_rl.errors import RewardError
from cero_rl.job.parent import die_with_parent
from cero_rl.rewards import verifiers
from cero_rl.rewards.base import RewardItem
from cero_rl.rewards.extras import clean_extras
from cero_rl.rewards.plugin import Scorer, close_loop, describe, load_plugin

TEXT_ONLY = "text: "


def private_pipes() -> tuple[IO[str], IO[str]]:
    """Our own copies of stdin and stdout, not inherited by children; the standard ones become
    /dev/null."""
    requests, replies = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    return os.fdopen(requests, encoding="utf-8"), os.fdopen(replies, "w", encoding="utf-8")


def limit_memory(limit_mb: int) -> None:
    """Cap the address space at what is mapped now plus `limit_mb`, so the limit measures items
    and not imports."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    statm = Path("/proc/self/statm")
    mapped = int(statm.read_text().split()[0]) * resource.getpagesize() if statm.exists() else 0
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = mapped + limit_mb * 1024 * 1024
    resource.setrlimit(
        resource.RLIMIT_AS, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
    )


def _load(function: str, kwargs: dict[str, Any]) -> Scorer:
    if function == "math":
        try:
            import math_verify  # noqa: F401  paid for now, not inside the first item's deadline
        except ImportError:
            raise RewardError(
                "reward.function: math needs math-verify; pip install math-verify"
            ) from None
        return Scorer(score=lambda items: [verifiers.math(item) for item in items], batched=False)
    if function == "reasoning_gym":
        try:
            import reasoning_gym  # noqa: F401
        except ImportError:
            raise RewardError(
                "reward.function: reasoning_gym is not installed; pip install 'cero_rl[procedural]'"
            ) from None
        return Scorer(
            score=lambda items: [verifiers.reasoning_gym(item) for item in items], batched=False
        )
    return load_plugin(function, kwargs)


def _gold_judge(function: str) -> Scorer:
    """1.0 for an answer that can be judged by; raises GoldError for the others, with "text: "
    before the reason where the same text can be right."""

    def score(items: Sequence[RewardItem]) -> list[Any]:
        for item in items:
            problem = verifiers.gold_problem(function, item.answer)
            if problem is not None:
                raise verifiers.GoldError(
                    ("" if problem.never_right else TEXT_ONLY) + problem.reason
                )
        return [1.0] * len(items)

    return Scorer(score=score, batched=False)


def _number(value: Any) -> float | None:
    if value is None:
        return None
    try:
        return float("no" if isinstance(value, (str, bytes)) else value)
    except (TypeError, ValueError):
        raise RewardError(
            f"reward.function: got a {type(value).__name__} as a reward, wanted a number or None"
        ) from None


def _reply(scores: list[Any]) -> dict[str, Any]:
    values, every, dropped = [], [], 0
    for score in scores:
        more: dict[str, float] = {}
        if isinstance(score, dict):
            more, lost = clean_extras({k: v for k, v in score.items() if k != "score"})
            dropped += lost
            score = score["score"]
        values.append(_number(score))
        every.append(more)
    return {"values": values, "extras": [e for e in every if e], "dropped": dropped}


def _answer(scorer: Scorer, items: list[dict[str, Any]]) -> dict[str, Any]:
    try:
        return _reply(scorer.score([RewardItem(**item) for item in items]))
    except RewardError as error:
        return {"fatal": str(error)}
    except MemoryError:
        # the heap is in no state to go on; the pool counts the item and starts another worker
        os._exit(1)
    except verifiers.GoldError as error:
        return {"error": str(error)}
    except Exception as error:
        return {"error": describe(error)}
    except BaseException as error:  # SystemExit, KeyboardInterrupt, libraries' own timeouts
        return {"error": describe(error)}


def main() -> int:
    requests, replies = private_pipes()

    def send(message: dict[str, Any]) -> None:
        replies.write(json.dumps(message) + "\n")
        replies.flush()

    start = json.loads(requests.readline() or "{}")
    if not start:
        return 0
    die_with_parent(start["parent"])
    try:
        scorer = _load(start["function"], start["kwargs"])
        if start["gold"]:
            scorer = _gold_judge(start["function"])
    except RewardError as error:
        send({"fatal": str(error)})
        return 0
    limit_memory(start["memory_limit_mb"])
    send({"ready": True, "batched": scorer.batched, "whole_groups": scorer.whole_groups})
    for line in requests:
        send(_answer(scorer, json.loads(line)["items"]))
    close_loop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
