"""Make the start models and prompt pools of the two example environments, in
recipes/assets/calculator and recipes/assets/guess, from a seed.

A character-level Qwen3 of 0.15M parameters is shown conversations by supervised learning, in its
own chat template, just long enough to know the forms and to do well some of the time:

    calculator  sums of 2 to 6 numbers; the tool is called in a third of them, the rest is guessed
    guess       bounds up to 24 apart; seven of ten guesses heed what it was told, the rest do not

    python tools/make_episodes.py --out recipes/assets
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from digits import is_heldout
from tiny_models import PAD, Batch, Size, Vocabulary, fit, make_model

SIZE = Size(64, 3, 2)
CALL = '<tool_call>{"name": "calculate", "arguments": {"expression": "'
CALL_END = '"}}</tool_call>'
ROLES = ["<user>", "<assistant>", "<tool>", "<tools>"]
TEMPLATE = (
    "{%- for t in tools or [] %}<tools>{{ t.function.name }}{% endfor %}"
    "{%- for m in messages %}"
    "{%- if m.role == 'assistant' %}<assistant>{{ m.content }}"
    "{%- for c in m.tool_calls or [] %}<tool_call>"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}'
    "</tool_call>{% endfor %}<eos>"
    "{%- else %}<{{ m.role }}>{{ m.content }}{% endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}<assistant>{% endif %}"
)
Spans = list[tuple[str, bool]]  # text, and whether the model writes it


@dataclass(frozen=True)
class Task:
    tokens: list[str]
    draw: Callable[[random.Random], tuple[str, str]]  # prompt, answer
    show: Callable[[random.Random, str, str], Spans]  # a conversation behind the prompt
    head: str  # what the template writes before the prompt
    steps: int  # of the warm start
    heldout: int  # prompts; there are not more of a few bounds


def draw_sum(rng: random.Random) -> tuple[str, str]:
    numbers = [rng.randint(1, 99)]
    for _ in range(rng.randint(1, 5)):
        numbers.append(rng.choice((1, -1)) * rng.randint(1, 99))
    return "".join(f"{n:+d}" for n in numbers).removeprefix("+"), str(sum(numbers))


def show_sum(rng: random.Random, prompt: str, answer: str) -> Spans:
    if rng.random() < 1 / 3:
        return [
            (CALL + prompt + CALL_END + "<eos>", True),
            (f"<tool>{answer}<assistant>", False),
            (answer + "<eos>", True),
        ]
    return [(str(rng.randint(-99, 300)) + "<eos>", True)]


def draw_guess(rng: random.Random) -> tuple[str, str]:
    low = rng.randint(10, 80)
    high = min(99, low + rng.randint(6, 24))
    return f"{low}-{high}", str(rng.randint(low, high))


def show_guess(rng: random.Random, prompt: str, answer: str) -> Spans:
    bounds = [int(part) for part in prompt.split("-")]
    low, high = bounds
    spans: Spans = []
    for turn in range(6):
        guess = rng.randint(low, high) if rng.random() < 0.7 else rng.randint(*bounds)
        spans.append((f"{guess}<eos>", True))
        if guess == int(answer) or turn == 5:
            break
        higher = guess < int(answer)
        low, high = (max(low, guess + 1), high) if higher else (low, min(high, guess - 1))
        spans.append((f"<user>{'higher' if higher else 'lower'}<assistant>", False))
    return spans


DIGITS = list("0123456789+-")
TASKS = {
    "calculator": Task(
        [*ROLES, "calculate", CALL, CALL_END, "error", *DIGITS],
        draw_sum,
        show_sum,
        "<tools>calculate",
        800,
        200,
    ),
    "guess": Task(
        [*ROLES, "higher", "lower", "number?", *DIGITS], draw_guess, show_guess, "", 900, 150
    ),
}


def practice(task: Task, rng: random.Random) -> tuple[str, str]:
    """A prompt that is not held out, with its answer."""
    while True:
        prompt, answer = task.draw(rng)
        if not is_heldout(prompt):
            return prompt, answer


def rows(task: Task, seed: int, *, heldout: bool) -> Iterator[dict[str, str]]:
    """Prompts of one side, each once, without end."""
    rng, seen = random.Random(f"pool-{seed}-{heldout}"), set()
    while True:
        prompt, answer = task.draw(rng)
        if prompt not in seen and is_heldout(prompt) == heldout:
            seen.add(prompt)
            yield {"prompt": prompt, "answer": answer}


def make(name: str, arguments: argparse.Namespace) -> None:
    task, out = TASKS[name], arguments.out / name
    vocabulary = Vocabulary(task.tokens)
    tokenizer = vocabulary.tokenizer()
    tokenizer.chat_template = TEMPLATE
    encode = vocabulary.encoder()
    rng = random.Random(f"episodes-{arguments.seed}")

    def draw() -> Batch:
        conversations = []
        for _ in range(arguments.batch):
            prompt, answer = practice(task, rng)
            tokens = encode(f"{task.head}<user>{prompt}<assistant>")
            labels = [-100] * len(tokens)
            for text, own in task.show(rng, prompt, answer):
                ids = [i for part in text.split("<eos>") for i in (*encode(part), 1)][:-1]
                tokens += ids
                labels += ids if own else [-100] * len(ids)
            conversations.append((tokens, labels))
        width = max(len(tokens) for tokens, _ in conversations)
        shape = (len(conversations), width)
        batch = torch.full(shape, PAD), torch.full(shape, -100)
        for row, pair in enumerate(conversations):
            for into, values in zip(batch, pair):
                into[row, : len(values)] = torch.tensor(values)
        return batch

    model = make_model(SIZE, len(vocabulary.ids()), arguments.seed)
    print(f"{name}: {model.num_parameters():,} parameters, {len(vocabulary.ids())} tokens")
    fit(model, draw, steps=arguments.steps or task.steps, rate=2e-3, decay=2.0, say_every=100)
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out / "model")
    tokenizer.save_pretrained(out / "model")
    for side, count in (("train", arguments.pool), ("heldout", task.heldout)):
        chosen = islice(rows(task, arguments.seed, heldout=side == "heldout"), count)
        text = "".join(json.dumps(row) + "\n" for row in chosen)
        (out / f"{side}.jsonl").write_text(text)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], allow_abbrev=False
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="its calculator/ and guess/ are made"
    )
    parser.add_argument("--only", choices=list(TASKS), help="one of them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="supervised steps; by default what was tuned")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--pool", type=int, default=1000, help="training prompts")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in TASKS if arguments.only is None else [arguments.only]:
        make(name, arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
