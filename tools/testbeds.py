"""Make a testbed: a start model, training pools and held-out sets of a task, from a seed.

Three tasks (testbed_tasks.py), two sizes of model (tiny_models.py), pools with 30 to 85 % dead
prompts (testbed_pools.py). Everything is a function of the arguments, on one thread.

    python tools/testbeds.py --task frontier --size 1m --out build/testbeds

writes into OUT/frontier_1m
    model/                start model and tokenizer; kept when it is there already
    train_50.jsonl        4,000 prompts, half of them dead; train_50_16k.jsonl 16,000
    heldout_50.jsonl      800 prompts drawn like the pool, without luck and wrong keys
    heldout_balanced.jsonl  800 prompts, all families and lengths alike
    samples_*.jsonl       right answers by prompt: a run that was stopped goes on from there
    testbed.json          what was made, the start model's accuracies, shares by kind

`--start recipes/assets/frontier` takes the start model that ships there and makes other pools of it
(`make pools`): another CPU would train another one.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from digits import Item
from testbed_pools import (
    KINDS,
    MEASURE_STREAM,
    Row,
    balanced_rows,
    choose,
    heldout_counts,
    heldout_rows,
    pool_counts,
    train_rows,
)
from testbed_tasks import TASKS, Task
from tiny_models import SIZES, Sampler, Vocabulary, make_model, right, warm_start
from transformers import Qwen3ForCausalLM


@dataclass(frozen=True)
class Warmup:
    """The supervised steps after which a start model knows enough to be taught the rest."""

    steps: int
    batch: int
    learning_rate: float


WARMUP = {
    ("digits", "1m"): Warmup(250, 128, 1e-3),
    ("digits", "4m"): Warmup(150, 128, 1e-3),
    ("frontier", "1m"): Warmup(240, 128, 1e-3),
    ("frontier", "4m"): Warmup(150, 128, 1e-3),
    ("chain", "1m"): Warmup(300, 64, 2e-3),
    ("chain", "4m"): Warmup(200, 64, 1e-3),
}
MEASURE_SAMPLES = 8  # a held-out prompt, drawn anew: the 16 that chose it flatter its kind


def take_start(start: Path, recipe: Mapping[str, Any], directory: Path) -> None:
    """Copy the start model of another testbed's directory. Raises SystemExit when it was made by
    another recipe."""
    made_by = json.loads((start / "testbed.json").read_text())["made_by"]
    if odd := [key for key, value in recipe.items() if made_by.get(key) != value]:
        raise SystemExit(
            f"error: --start {start}: its {odd[0]} is {made_by.get(odd[0])}, "
            f"wanted {recipe[odd[0]]}; name a testbed of the same task, size and seed"
        )
    weights = Path("model") / "model.safetensors"
    there = directory / weights
    if there.is_file() and there.read_bytes() == (start / weights).read_bytes():
        return
    for samples in directory.glob("samples_*.jsonl"):  # of another model
        samples.unlink()
    shutil.copytree(start / "model", directory / "model", dirs_exist_ok=True)
    (directory / "start.json").write_text(json.dumps(recipe) + "\n")


def start_model(task: Task, recipe: Mapping[str, Any], directory: Path) -> Qwen3ForCausalLM:
    """The warm-started model of `recipe`; the one in `directory` when it was made by the same."""
    made = directory / "start.json"
    if made.is_file() and json.loads(made.read_text()) == recipe:
        print(f"the start model in {directory / 'model'} is kept")
        return Qwen3ForCausalLM.from_pretrained(directory / "model", dtype=torch.float32).eval()
    for samples in directory.glob("samples_*.jsonl"):  # of another model
        samples.unlink()
    vocabulary = Vocabulary(task.tokens)
    encode = vocabulary.encoder()

    def practice(rng: random.Random) -> tuple[list[int], list[int]]:
        item = task.practice(rng)
        return encode(item.prompt), encode(task.write(item))

    model = make_model(SIZES[recipe["size"]], len(vocabulary.ids()), recipe["seed"])
    print(f"{model.num_parameters():,} parameters, {len(vocabulary.ids())} tokens")
    warm_start(
        model,
        practice,
        steps=recipe["steps"],
        batch=recipe["batch"],
        rate=recipe["learning_rate"],
        seed=recipe["seed"],
    )
    model.save_pretrained(directory / "model")
    vocabulary.tokenizer().save_pretrained(directory / "model")
    made.write_text(json.dumps(recipe) + "\n")
    return model


def pass_at(k: int, successes: int, samples: int) -> float:
    """The unbiased estimate of the chance that one of k samples is right (2107.03374)."""
    return 1.0 - math.comb(samples - successes, k) / math.comb(samples, k)


def measure(sampler: Sampler, sets: Mapping[str, Sequence[Row]]) -> dict[str, dict[str, Any]]:
    """Accuracy of each set: avg@1, pass@4, and avg@1 by family, from samples drawn anew."""
    items: dict[str, Item] = {row.item.prompt: row.item for rows in sets.values() for row in rows}
    numbered = dict(enumerate(items.values()))
    texts = sampler.responses(numbered, MEASURE_SAMPLES, stream=MEASURE_STREAM)
    successes = {item.prompt: right(texts[i], item.answer) for i, item in numbered.items()}
    result = {}
    for name, rows in sets.items():
        hits = [successes[row.item.prompt] for row in rows]
        families: dict[str, list[float]] = defaultdict(list)
        for row, hit in zip(rows, hits):
            families[row.item.family].append(hit / MEASURE_SAMPLES)
        result[name] = {
            "avg@1": round(float(np.mean(hits)) / MEASURE_SAMPLES, 4),
            "pass@4": round(float(np.mean([pass_at(4, h, MEASURE_SAMPLES) for h in hits])), 4),
            "by_family": {
                family: round(float(np.mean(values)), 4)
                for family, values in sorted(families.items())
            },
        }
    return result


def contents(rows: Sequence[Row]) -> dict[str, Any]:
    """What a set holds: its size, the share of each kind, prompts by family."""
    kinds = Counter(row.kind for row in rows)
    families = Counter(row.item.family for row in rows)
    return {
        "prompts": len(rows),
        "kinds": {kind: round(kinds[kind] / len(rows), 4) for kind in KINDS if kinds[kind]},
        "families": dict(sorted(families.items())),
    }


def pool_name(dead: int, prompts: int) -> str:
    if prompts == 4000:
        return f"train_{dead}"
    return f"train_{dead}_" + (f"{prompts // 1000}k" if prompts % 1000 == 0 else f"{prompts}")


def print_table(report: Mapping[str, Any]) -> None:
    print(f"\n{'set':<18}{'prompts':>8}" + "".join(f"{kind:>14}" for kind in KINDS))
    for name, entry in report["sets"].items():
        shares = "".join(f"{entry['kinds'].get(kind, 0):>14.3f}" for kind in KINDS)
        print(f"{name:<18}{entry['prompts']:>8}{shares}")
    print(f"\n{'start model on':<18}{'avg@1':>8}{'pass@4':>8}  by family")
    for name, entry in report["start"].items():
        families = "  ".join(f"{f} {value:.2f}" for f, value in entry["by_family"].items())
        print(f"{name:<18}{entry['avg@1']:>8.3f}{entry['pass@4']:>8.3f}  {families}")


def make(arguments: argparse.Namespace) -> None:
    task, seed = TASKS[arguments.task], arguments.seed
    directory = arguments.out / f"{arguments.task}_{arguments.size}"
    directory.mkdir(parents=True, exist_ok=True)
    warmup = WARMUP[arguments.task, arguments.size]
    recipe = {
        "task": arguments.task,
        "size": arguments.size,
        "seed": seed,
        "steps": arguments.steps or warmup.steps,
        "batch": warmup.batch,
        "learning_rate": warmup.learning_rate,
    }
    if arguments.start is not None:
        take_start(arguments.start, recipe, directory)
    model = start_model(task, recipe, directory)
    sampler = Sampler(model, Vocabulary(task.tokens), task.max_response_tokens, seed)
    held = {
        dead: heldout_counts(task.name, dead / 100, arguments.heldout) for dead in arguments.dead
    }
    pools = {
        (dead, prompts): pool_counts(task.name, dead / 100, prompts)
        for dead in arguments.dead
        for prompts in arguments.prompts
    }
    rows = heldout_rows(task, sampler, directory, seed, list(held.values()), arguments.candidates)
    heldout = {
        f"heldout_{dead}": choose(rows, counts, f"heldout-{seed}") for dead, counts in held.items()
    }
    heldout["heldout_balanced"] = balanced_rows(task, sampler, directory, seed, arguments.heldout)
    start = measure(sampler, heldout)
    rows = train_rows(task, sampler, directory, seed, list(pools.values()), arguments.candidates)
    sets = {
        pool_name(dead, prompts): choose(rows, counts, f"pool-{seed}")
        for (dead, prompts), counts in pools.items()
    } | heldout
    for name, chosen in sets.items():
        lines = "".join(json.dumps(row.entry()) + "\n" for row in chosen)
        (directory / f"{name}.jsonl").write_text(lines)
    report = {
        "made_by": recipe | {"parameters": model.num_parameters()},
        "sets": {name: contents(chosen) for name, chosen in sets.items()},
        "start": start,
    }
    (directory / "testbed.json").write_text(json.dumps(report, indent=1) + "\n")
    print_table(report)
    print(f"\nwrote {directory}")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], allow_abbrev=False
    )
    parser.add_argument("--task", choices=list(TASKS), required=True)
    parser.add_argument("--size", choices=list(SIZES), default="1m")
    parser.add_argument("--out", type=Path, required=True, help="its TASK_SIZE/ is written")
    parser.add_argument("--start", type=Path, help="a testbed whose start model is taken")
    parser.add_argument("--dead", type=int, nargs="+", default=[30, 50, 70, 85], help="percent")
    parser.add_argument("--prompts", type=int, nargs="+", default=[4000, 16000])
    parser.add_argument("--heldout", type=int, default=800, help="prompts of each held-out set")
    parser.add_argument("--steps", type=int, help="supervised steps; by default what was tuned")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--candidates", type=int, default=400_000, help="prompts to sample at most on one side"
    )
    arguments = parser.parse_args()
    try:
        for dead in arguments.dead:
            pool_counts(arguments.task, dead / 100, max(arguments.prompts))
    except ValueError as error:
        parser.error(f"--{error}, as a share")
    torch.set_num_threads(1)
    started = time.monotonic()
    make(arguments)
    print(f"{time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
