"""Make the digit strings' start model and prompt pools, the files of recipes/assets, from a seed.

A character-level Qwen3 of 0.8M parameters is warm-started by supervised learning on digit-string
tasks, just long enough to be right about half the time. Then prompts are sorted by how often
that model answers them:

    digits_unfiltered.jsonl  55 % solved, 15 % impossible (a wrong answer key), 10 % luck, 20 %
                             learnable: as unfiltered data is
    digits_balanced.jsonl    all families and lengths alike, as they come
    digits_heldout.jsonl     all families and lengths alike; none of them in any other set

    python tools/make_tiny_model.py --out recipes/assets
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import defaultdict
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from digits import (
    ALPHABET,
    FAMILIES,
    LOTTERY,
    MAX_ANSWER_CHARS,
    MAX_PROMPT_CHARS,
    Item,
    practice,
    stream,
)
from tiny_models import EOS, PAD, SIZES, Batch, batch_of, fit, make_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from cero_rl.rollout.engines.transformers import TransformersEngine
from cero_rl.rollout.protocol import RolloutRequest

SHARES = {"solved": 0.55, "impossible": 0.15, "luck": 0.10, "learnable": 0.20}
CONTEXT = 64


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character."""
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<eos>", *ALPHABET])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>", model_max_length=CONTEXT
    )


def warm_start(
    model: Qwen3ForCausalLM,
    encode: dict[str, int],
    *,
    steps: int,
    batch: int,
    rate: float,
    seed: int,
) -> None:
    """Next-token cross-entropy on answers; the rate falls in the last four fifths."""
    rng = random.Random(f"warm-start-{seed}")
    width = MAX_PROMPT_CHARS + MAX_ANSWER_CHARS + 1

    def draw() -> Batch:
        items = [practice(rng) for _ in range(batch)]
        rows = [([encode[c] for c in i.prompt], [encode[c] for c in i.answer]) for i in items]
        return batch_of(rows, width)

    fit(model, draw, steps=steps, rate=rate, decay=1.25, say_every=25)


def success_rates(
    engine: TransformersEngine, encode: dict[str, int], items: Sequence[Item], samples: int
) -> np.ndarray:
    """Share of right answers among `samples` draws at temperature 1, [len(items)]."""
    requests = [
        RolloutRequest(i, np.array([encode[c] for c in item.prompt]), samples, stream_key=i)
        for i, item in enumerate(items)
    ]
    groups = engine.generate(requests, stream=0, temperature=1.0)
    return np.array(
        [
            np.mean([c.text == item.answer for c in group.completions])
            for group, item in zip(groups, items)
        ]
    )


def unfiltered_pool(
    candidates: Sequence[Item], rates: np.ndarray, size: int, seed: int
) -> list[dict[str, str]]:
    """Prompts by kind in the shares of SHARES; within a kind, families in turn as far as they
    reach."""
    rng = random.Random(f"pool-{seed}")
    by_kind: dict[str, list[Item]] = {"solved": [], "learnable": []}
    for item, rate in zip(candidates, rates):
        if rate == 1.0:
            by_kind["solved"].append(item)
        elif rate > 0.0:
            by_kind["learnable"].append(item)
    counts = {kind: round(size * share) for kind, share in SHARES.items()}
    rows = []
    for kind in ("solved", "learnable"):
        if len(by_kind[kind]) < counts[kind]:
            raise SystemExit(
                f"error: only {len(by_kind[kind])} {kind} prompts of {counts[kind]} wanted; "
                "raise --candidates"
            )
        rows += [(item, item.answer, kind) for item in by_kind[kind][: counts[kind]]]
    used = {item.prompt for item, _, _ in rows}
    rest = iter(item for item in candidates if item.prompt not in used)
    # the key is a string of another length that the question cannot have
    for item in islice(rest, counts["impossible"]):
        rows.append((item, "".join(rng.choice("0123456789") for _ in range(10)), "impossible"))
    for item in islice(stream(seed + 1, families=LOTTERY, heldout=False), counts["luck"]):
        rows.append((item, item.answer, "luck"))
    rng.shuffle(rows)
    return [
        {"prompt": item.prompt, "answer": answer, "family": item.family, "kind": kind}
        for item, answer, kind in rows
    ]


def write_rows(path: Path, rows: Sequence[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(f"wrote {path.name}: {len(rows)} prompts")


def print_table(items: Sequence[Item], rates: np.ndarray) -> None:
    cells = defaultdict(list)
    for item, rate in zip(items, rates):
        cells[item.family, item.length].append(rate)
    lengths = sorted({length for _, length in cells})
    print("family  " + "".join(f"{length:>7}" for length in lengths))
    for family in FAMILIES:
        print(
            f"{family:<8}"
            + "".join(
                f"{np.mean(cells[family, n]):>7.2f}" if cells[family, n] else "      -"
                for n in lengths
            )
        )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], allow_abbrev=False
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="directory for tiny_digits/ and the three .jsonl files",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=250, help="supervised steps of the warm start")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--pool", type=int, default=4000, help="prompts of each training pool")
    parser.add_argument("--heldout", type=int, default=1200)
    parser.add_argument(
        "--candidates", type=int, default=24000, help="prompts the unfiltered pool is chosen from"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    tokenizer = make_tokenizer()
    encode = tokenizer.get_vocab()
    model = make_model(SIZES["1m"], len(encode), arguments.seed, context=CONTEXT)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(encode)} tokens")
    warm_start(
        model,
        encode,
        steps=arguments.steps,
        batch=arguments.batch,
        rate=arguments.learning_rate,
        seed=arguments.seed,
    )
    engine = TransformersEngine(
        model,
        eos_token_ids=[EOS],
        pad_token_id=PAD,
        decode=lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=True)),
        max_response_tokens=MAX_ANSWER_CHARS + 2,
        max_batch_tokens=16384,
        seed=arguments.seed,
    )
    heldout = list(
        islice(stream(arguments.seed, families=FAMILIES, heldout=True), arguments.heldout)
    )
    rates = success_rates(engine, encode, heldout, 4)
    print(f"held-out accuracy at temperature 1: {rates.mean():.3f}")
    print_table(heldout, rates)
    candidates = list(
        islice(stream(arguments.seed, families=FAMILIES, heldout=False), arguments.candidates)
    )
    pool = unfiltered_pool(
        candidates, success_rates(engine, encode, candidates, 8), arguments.pool, arguments.seed
    )

    arguments.out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(arguments.out / "tiny_digits")
    tokenizer.save_pretrained(arguments.out / "tiny_digits")
    write_rows(arguments.out / "digits_unfiltered.jsonl", pool)
    for name, items in (("balanced", candidates[: arguments.pool]), ("heldout", heldout)):
        rows = [
            {"prompt": i.prompt, "answer": i.answer, "family": i.family, "kind": "as drawn"}
            for i in items
        ]
        write_rows(arguments.out / f"digits_{name}.jsonl", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
