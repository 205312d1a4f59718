"""The tasks of the testbeds: what is asked, what the start model is taught to write, what a wrong
key looks like. A reward reads the final answer alone (`exact`).

    digits    the six families of digits.py
    frontier  R reversed, O sorted, D each digit doubled mod 10, P running sums mod 10, of 2 to 16
              digits: from solved to out of reach as strings grow
                  P4821=4245
    chain     a value mod 10 goes through the string, one digit a step; the response writes each
              digit with the value behind it, then the last three values. 10 to 16 digits: 20 to 32
              tokens before the answer
                  A4738212034=44713482241527073044####704

Each has a lottery beside its families, L: the answer is one random digit, so that a sample is right
about one time in ten, whatever is learnt.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import digits
from digits import LOTTERY, Item, is_heldout

DIGITS = "0123456789"
FINAL = "####"  # what `exact` takes for the mark of the final answer; one token
LAST_VALUES = 3  # of a chain are its answer: a guess is right one time in a thousand


@dataclass(frozen=True)
class Task:
    name: str
    families: str  # one character each
    lengths: Sequence[int]  # of the digit string
    tokens: Sequence[str]  # of the vocabulary, without padding and end
    draw: Callable[[str, int, random.Random], Item]
    write: Callable[[Item], str]  # the response that the start model is taught
    max_prompt_tokens: int
    max_response_tokens: int  # with the end token

    def stream(self, seed: int, *, families: str, heldout: bool) -> Iterator[Item]:
        """Endless distinct items of one side of the split, see digits.stream."""
        return digits.stream(
            seed,
            families=families,
            heldout=heldout,
            name=self.name,
            lengths=self.lengths,
            draw=self.draw,
        )

    def practice(self, rng: random.Random) -> Item:
        """One item for supervised learning, never a held-out one; questions may repeat. Short ones
        are commoner: the length is the smaller of two draws."""
        while True:
            length = min(rng.choice(self.lengths), rng.choice(self.lengths))
            item = self.draw(rng.choice(self.families + LOTTERY), length, rng)
            if not is_heldout(item.prompt):
                return item


def wrong_key(item: Item) -> str:
    """Another answer of the same form, a function of the question."""
    rng = random.Random(f"wrong-{item.prompt}")
    while True:
        key = "".join(rng.choice(DIGITS) for _ in item.answer)
        if key != item.answer:
            return key


def string(length: int, rng: random.Random) -> str:
    return "".join(rng.choice(DIGITS) for _ in range(length))


def solve_frontier(family: str, text: str) -> str:
    """The answer of a frontier family; ValueError for one without a rule."""
    if family == "R":
        return text[::-1]
    if family == "O":
        return "".join(sorted(text))
    if family == "D":
        return "".join(str(2 * int(c) % 10) for c in text)
    if family == "P":
        return "".join(str(sum(map(int, text[: end + 1])) % 10) for end in range(len(text)))
    raise ValueError(f"family: got {family!r}, wanted one of R, O, D, P")


def draw_frontier(family: str, length: int, rng: random.Random) -> Item:
    text = string(length, rng)
    answer = rng.choice(DIGITS) if family == LOTTERY else solve_frontier(family, text)
    return Item(f"{family}{text}=", answer, family, length)


def next_value(family: str, value: int, digit: int, step: int) -> int:
    """The value of a chain after one more digit; steps count from 0. ValueError for a family
    without a rule."""
    if family == "A":
        return (value + digit) % 10
    if family == "B":
        return (value + (digit if step % 2 == 0 else -digit)) % 10
    if family == "C":
        return (2 * value + digit) % 10
    if family == "D":
        return (3 * value + digit) % 10
    raise ValueError(f"family: got {family!r}, wanted one of A, B, C, D")


def chain_values(family: str, text: str) -> list[int]:
    values, value = [], 0
    for step, character in enumerate(text):
        value = next_value(family, value, int(character), step)
        values.append(value)
    return values


def draw_chain(family: str, length: int, rng: random.Random) -> Item:
    text = string(length, rng)
    answer = rng.choice(DIGITS)
    if family != LOTTERY:
        answer = "".join(map(str, chain_values(family, text)[-LAST_VALUES:]))
    return Item(f"{family}{text}=", answer, family, length)


def write_chain(item: Item) -> str:
    """Each digit and the value behind it, then the answer. A lottery writes the steps of the
    first family: its answer follows from nothing."""
    text = item.prompt[1:-1]
    values = chain_values("A" if item.family == LOTTERY else item.family, text)
    steps = "".join(f"{digit}{value}" for digit, value in zip(text, values))
    return f"{steps}{FINAL}{item.answer}"


def answer_alone(item: Item) -> str:
    return item.answer


TASKS = {
    task.name: task
    for task in (
        Task(
            "digits",
            digits.FAMILIES,
            digits.LENGTHS,
            digits.ALPHABET,
            digits.draw,
            answer_alone,
            digits.MAX_PROMPT_CHARS,
            digits.MAX_ANSWER_CHARS + 2,
        ),
        Task(
            "frontier",
            "RODP",
            range(2, 17),
            DIGITS + "=RODP" + LOTTERY,
            draw_frontier,
            answer_alone,
            1 + 16 + 1,
            16 + 2,
        ),
        Task(
            "chain",
            "ABCD",
            range(10, 17),
            [*DIGITS, *"=ABCD", LOTTERY, FINAL],
            draw_chain,
            write_chain,
            1 + 16 + 1,
            2 * 16 + 5,
        ),
    )
}
