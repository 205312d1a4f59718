"""Make a pool of word tasks that a small pretrained chat model does in part, from a seed.

    python tools/make_words.py    # build/words: train.jsonl, heldout.jsonl

Four families over 2 to 5 common words: repeat them, say them in reverse, say the first, say the
last. A prompt is a chat of an instruction, one solved example and the question, 33 to 40 tokens of
SmolLM2's; the response is the answer and nothing else, 2 to 10 tokens with the end. SmolLM2-135M
repeats two words in about one sample of three and hardly ever reverses four: difficulty follows
family and length, which are columns.

What is made is a function of the seed, the same on every machine. No question is in both files.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_COMMON = """
cat dog house river green stone apple table music light paper bread cloud horse chair ocean metal
tiger plant glass water fire tree bird fish book door road hand milk rain snow wind star ship king
gold salt sand wood blue red black white north south east west one two three
"""
WORDS = tuple(_COMMON.split())
LENGTHS = range(2, 6)
EXAMPLE = ("sun", "moon")  # in no question
Words = Sequence[str]
FAMILIES: dict[str, tuple[str, Callable[[Words], Words]]] = {
    "repeat": ("Repeat.", lambda words: words),
    "reverse": ("Reverse.", lambda words: words[::-1]),
    "first": ("First word.", lambda words: words[:1]),
    "last": ("Last word.", lambda words: words[-1:]),
}


def row(family: str, words: Words) -> dict[str, Any]:
    """A prompt as messages, its answer and the columns that cells are made of."""
    instruction, solve = FAMILIES[family]
    chat = [
        ("system", instruction),
        ("user", " ".join(EXAMPLE)),
        ("assistant", " ".join(solve(EXAMPLE))),
        ("user", " ".join(words)),
    ]
    return {
        "prompt": [{"role": role, "content": content} for role, content in chat],
        "answer": " ".join(solve(words)),
        "family": family,
        "length": len(words),
    }


def make(seed: int, train: int, heldout: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Training and held-out rows, all families and lengths in turn, each list shuffled."""
    rng = random.Random(f"words-{seed}")
    cells = [(family, length) for family in FAMILIES for length in LENGTHS]
    seen: set[tuple[str, tuple[str, ...]]] = set()
    rows: list[dict[str, Any]] = []
    while len(rows) < train + heldout:
        family, length = cells[len(rows) % len(cells)]
        words = tuple(rng.sample(WORDS, length))
        if (family, words) not in seen:
            seen.add((family, words))
            rows.append(row(family, words))
    parts = rows[:heldout], rows[heldout:]
    for part in parts:
        rng.shuffle(part)
    return parts[1], parts[0]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], allow_abbrev=False
    )
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "words")
    parser.add_argument("--train", type=int, default=400, help="prompts")
    parser.add_argument("--heldout", type=int, default=160, help="prompts never trained on")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    sets = make(arguments.seed, arguments.train, arguments.heldout)
    for name, rows in zip(("train", "heldout"), sets):
        text = "".join(json.dumps(entry) + "\n" for entry in rows)
        (arguments.out / f"{name}.jsonl").write_text(text)
    print(f"wrote {arguments.out}: {len(sets[0])} training and {len(sets[1])} held-out prompts")
    return 0


if __name__ == "__main__":
    sys.exit(main())
