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

from cero_rl.rewards import mathematics
from cero_rl.rewards.answers import alternatives, answer_text, final_part, same_text
from cero_rl.rewards.base import GoldProblem, RewardItem

_COMMAND = re.compile(r"\\[A-Za-z]+")
_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)


class GoldError(ValueError):
    """The answer in the data cannot be judged by."""


def exact(item: RewardItem) -> float:
    """1.0 when what the completion says last (`final_part`) is the answer, or one of them where
    there are several (`alternatives`, `same_text`)."""
    said = final_part(item.completion)
    return float(any(same_text(said, answer) for answer in alternatives(item.answer)))


@lru_cache(maxsize=4096)
def _gold(answer: str) -> mathematics.Reading:
    gold = mathematics.read_gold(final_part(answer))
    if not (gold.whole or gold.number or any(c.isalnum() for c in _COMMAND.sub("", gold.text))):
        raise GoldError(
            f"the answer {answer[:80]!r} cannot be read as mathematics; use "
            "reward.function: exact or a plug-in"
        )
    return gold


def math(item: RewardItem) -> float:
    """1.0 when what the completion says equals the answer, or one of them where there are several
    (`mathematics.read_completion`, `mathematics.read_gold`; math-verify compares).

    Raises GoldError when an answer itself is not mathematics.
    """
    texts = [answer_text(answer) for answer in alternatives(item.answer)]
    golds = [_gold(text) for text in texts]
    said = mathematics.read_completion(item.completion, max(map(len, texts)))
    return float(any(mathematics.agree(gold, said) for gold in golds))


def gold_problem(function: str, answer: Any) -> GoldProblem | None:
    """Why the built-in verifier `function` cannot judge by this answer; None where it can: the
    answer can be read and equals itself. None for plug-ins and procedural sets.

    For `math` it may take without end, as judging may: `pool.gold_problems` does the same in
    workers, under a deadline.
    """
    texts = [answer_text(entry) for entry in alternatives(answer)]
    if function == "exact":
        empty = [text for text in texts if not final_part(text)]
        if not empty:
            return None
        return GoldProblem(f"the answer {empty[0][:80]!r} ends in nothing", never_right=True)
    if function != "math":
        return None
    for text in texts:
        try:
            gold = _gold(text)
        except GoldError as error:
            return GoldProblem(str(error), never_right=True)
        if not (gold.whole or gold.number or mathematics.is_text(text)):
            return GoldProblem(
                f"the answer {text[:80]!r} cannot be read as mathematics, so only the same text "
                "counts; write it in LaTeX that math-verify knows, or use a plug-in",
                never_right=False,
            )
        if not mathematics.equals_itself(gold):
            reason = f"the answer {text[:80]!r} does not equal itself as mathematics"
            return GoldProblem(reason, never_right=False)
    return None


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
