"""The built-in verifiers: RewardItem -> 1.0 or 0.0.

`exact` cannot hang and runs in the trainer. `math` and `reasoning_gym` run in workers only: they
read model-written text with libraries that can loop or allocate without end, so their own timeouts
(SIGALRM) are off and the pool's deadline holds. An exception means that the item could not be
judged; the caller counts it as missing.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from cero_rl.rewards.base import RewardItem

# math-verify's own timeouts are signals and work in the main thread only; the pool kills a late
# worker instead. None turns them off, which its annotations do not know.
_NO_TIMEOUT: Any = None
_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)


class GoldError(ValueError):
    """The answer in the data cannot be judged by."""


def final_part(text: str) -> str:
    """What follows the last "####" (GSM8K's mark for the final answer), or all of it; stripped."""
    return text.rpartition("####")[2].strip()


def exact(item: RewardItem) -> float:
    """1.0 when completion and answer are the same text after `final_part`."""
    return float(final_part(item.completion) == final_part(item.answer))


@lru_cache(maxsize=4096)
def _gold(answer: str) -> tuple[Any, ...]:
    from math_verify import parse

    text = final_part(answer)
    marked = "$" in text or "\\boxed" in text or "\\(" in text or "\\[" in text
    parsed = parse(text if marked else f"\\boxed{{{text}}}", parsing_timeout=_NO_TIMEOUT) or parse(
        text, parsing_timeout=_NO_TIMEOUT
    )
    if not parsed:
        raise GoldError(
            f"the answer {answer[:80]!r} cannot be read as mathematics; use "
            "reward.function: exact or a plug-in"
        )
    return tuple(parsed)


def math(item: RewardItem) -> float:
    """1.0 when the completion's final expression equals the answer (math-verify; a \\boxed{}
    expression comes first).

    Raises GoldError when the answer itself is not mathematics.
    """
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    gold = list(_gold(item.answer))
    configs = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())
    found = parse(item.completion, extraction_config=configs, parsing_timeout=_NO_TIMEOUT)
    return float(bool(found) and verify(gold, found, timeout_seconds=None))


def gold_problem(function: str, answer: str) -> str | None:
    """Why the built-in verifier `function` cannot judge by this answer, in one line; None where it
    can: the answer can be read and equals itself. None for plug-ins and procedural sets.

    For `math` it may take without end, as judging may: `pool.gold_problems` does the same in
    workers, under a deadline.
    """
    if function == "exact":
        return None if final_part(answer) else f"the answer {answer[:80]!r} ends in nothing"
    if function != "math":
        return None
    try:
        gold = list(_gold(answer))
    except GoldError as error:
        return str(error)
    from math_verify import verify
    from sympy import Integer

    # what is right is often seen at a glance; a tower of powers takes for ever to tell from 1
    verify(gold, [Integer(1)], timeout_seconds=None)
    same = verify(gold, gold, timeout_seconds=None)
    return None if same else f"the answer {answer[:80]!r} does not equal itself as mathematics"


@lru_cache(maxsize=8)
def _procedural(name: str, seed: int, size: int) -> Any:
    import reasoning_gym

    return reasoning_gym.create_dataset(name, seed=seed, size=size)


def reasoning_gym(item: RewardItem) -> float:
    """1.0 when the set's own scorer gives exactly 1.0 (some give crumbs for wrong answers).

    Reads the last <answer>...</answer>, or the whole completion. A scorer that raises on this text
    but accepts the reference answer says "wrong" (0.0); one that raises on both is broken, and its
    exception passes on. Raises KeyError for items of other data.
    """
    columns = item.columns
    dataset = _procedural(columns["reasoning_gym"], columns["seed"], columns["size"])
    entry = dataset[columns["index"]]
    tagged = _TAGGED.findall(item.completion)
    text = (tagged[-1] if tagged else item.completion).strip()
    try:
        score = dataset.score_answer(text, entry)
    except MemoryError:
        raise
    except Exception:
        dataset.score_answer(entry["answer"], entry)
        return 0.0
    return float(score == 1.0)
