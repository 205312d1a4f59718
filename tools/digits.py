"""Digit-string tasks: six families that a one-million-parameter character model can learn, and
two that it cannot.

    M48213=8     the largest digit
    C3:48233=2   how often a digit occurs
    S4821=5      the digit sum modulo 10
    R4821=1284   reversed
    I2:4813=1    the digit at an index (0-based)
    O4813=1348   sorted
    L4821=7      a lottery: the answer is a random digit, so a sample is right about one time in
                 ten, whatever is learnt

Strings have 2 to 8 digits. Everything is a function of a seed. Train and held-out strings are
told apart by a hash, so no held-out question can turn up in any other set.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

FAMILIES = "MCSRIO"
LOTTERY = "L"
LENGTHS = range(2, 9)
ALPHABET = "0123456789=:" + FAMILIES + LOTTERY
MAX_PROMPT_CHARS = 1 + 2 + LENGTHS[-1] + 1
MAX_ANSWER_CHARS = LENGTHS[-1]


@dataclass(frozen=True)
class Item:
    prompt: str
    answer: str
    family: str
    length: int


def solve(family: str, digits: str, argument: int = 0) -> str:
    """The answer to `family` on `digits`; `argument` is the digit that C counts or the index
    that I reads.

    Raises ValueError for a family without a rule (the lottery has none).
    """
    if family == "M":
        return max(digits)
    if family == "C":
        return str(digits.count(str(argument)))
    if family == "S":
        return str(sum(map(int, digits)) % 10)
    if family == "R":
        return digits[::-1]
    if family == "I":
        return digits[argument]
    if family == "O":
        return "".join(sorted(digits))
    raise ValueError(f"family: got {family!r}, wanted one of {', '.join(FAMILIES)}")


def is_heldout(prompt: str) -> bool:
    """Every seventh question, by its hash."""
    return hashlib.sha256(prompt.encode()).digest()[0] % 7 == 0


def draw(family: str, length: int, rng: random.Random) -> Item:
    """One item; the lottery's answer is drawn from `rng`."""
    digits = "".join(rng.choice("0123456789") for _ in range(length))
    argument = 0
    head = family
    if family == "C":  # mostly a digit that occurs
        argument = int(rng.choice(digits)) if rng.random() < 0.8 else rng.randrange(10)
        head = f"C{argument}:"
    elif family == "I":
        argument = rng.randrange(length)
        head = f"I{argument}:"
    answer = rng.choice("0123456789") if family == LOTTERY else solve(family, digits, argument)
    return Item(f"{head}{digits}=", answer, family, length)


def stream(
    seed: int,
    *,
    families: str,
    heldout: bool,
    name: str = "digits",
    lengths: Sequence[int] = LENGTHS,
    draw: Callable[[str, int, random.Random], Item] = draw,
) -> Iterator[Item]:
    """Endless distinct items of the task `name`, families and lengths in turn so that all weigh
    alike; all of one side of the split."""
    rng = random.Random(f"{name}-{seed}")
    seen: set[str] = set()
    while True:
        for length in lengths:
            for family in families:
                # short strings run out of new questions: then this cell is left out
                for _ in range(200):
                    item = draw(family, length, rng)
                    if item.prompt not in seen and is_heldout(item.prompt) == heldout:
                        seen.add(item.prompt)
                        yield item
                        break


def practice(rng: random.Random) -> Item:
    """One item for supervised learning, never a held-out one; questions may repeat."""
    while True:
        item = draw(rng.choice(FAMILIES + LOTTERY), rng.choice(LENGTHS), rng)
        if not is_heldout(item.prompt):
            return item
