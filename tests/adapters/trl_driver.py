"""Real TRL training on the tiny model, in this process; `python trl_driver.py OUT key=value ...`
runs it as one rank of several.

RANK=0 WORLD_SIZE=2 LOCAL_RANK=0 MASTER_ADDR=127.0.0.1 MASTER_PORT=... python
tests/adapters/trl_driver.py OUT per_device=4
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig

from cero_rl.adapters.trl import CeroGRPOTrainer
from cero_rl.scheduler.budgeted import BudgetedScheduler
from cero_rl.scheduler.sizes import BudgetSpec, Shared

ROOT = Path(__file__).resolve().parents[2]
ASSETS = ROOT / "recipes" / "assets"
PROMPTS = 12


class RaggedScheduler(BudgetedScheduler):
    """Groups of one to max_units units on prompts in a random order, different every round: the
    hardest thing to execute."""

    name = "ragged"

    def __init__(
        self,
        rounds: int,
        budget: int,
        unit: int,
        most: int,
        capacity: int,
        totals: tuple[int, ...] = (),
    ) -> None:
        super().__init__(BudgetSpec(PROMPTS, rounds, budget, unit, most, capacity), Shared())
        self.totals = totals  # units of each round; empty: full rounds

    def _choose(self, units_left: int, rounds_left: int):
        # depends on the evidence
        rng = np.random.default_rng([7, self.round, int(self.posterior.a.sum())])
        total = self.totals[self.round] if self.totals else self.spec.capacity_units
        ids = rng.permutation(PROMPTS)
        units = np.minimum(
            rng.integers(1, self.spec.max_units_per_prompt + 1, PROMPTS),
            self.spec.max_units_per_prompt,
        )
        while units.sum() < total:
            units = np.minimum(units + 1, self.spec.max_units_per_prompt)
        units = np.clip(total - (np.cumsum(units) - units), 0, units)
        return ids[units > 0], units[units > 0]


class Record(TrainerCallback):
    """What every round did, as plain JSON values."""

    def __init__(self) -> None:
        self.rounds: list[dict[str, Any]] = []
        self.trainer: CeroGRPOTrainer | None = None
        self.seen: Counter[str] = Counter()
        self.advantages: list[np.ndarray] = []

    def on_step_end(self, args, state, control, **kwargs):
        result = self.trainer.last_round
        if not self.rounds or self.rounds[-1]["round"] != result.allocation.round:
            self.rounds.append(
                {
                    "round": result.allocation.round,
                    "prompts": result.allocation.prompt_ids.tolist(),
                    "rollouts": result.allocation.rollouts.tolist(),
                    "rewards": [None if np.isnan(r) else float(r) for r in result.rewards],
                    "advantages": result.advantages.tolist(),
                    "trials": result.trials.tolist(),
                    "successes": result.successes.tolist(),
                    "generated": dict(self.seen),
                }
            )
            self.seen.clear()


def dataset(prompts: int = PROMPTS) -> Dataset:
    rows = [
        json.loads(line)
        for line in (ASSETS / "digits_balanced.jsonl").read_text().splitlines()[:prompts]
    ]
    return Dataset.from_list(rows)


def exact(completions: list[str], answer: list[str], **columns: object) -> list[float]:
    return [
        float(completion.strip() == wanted)
        for completion, wanted in zip(completions, answer, strict=True)
    ]


def config(out: Path, **changes: Any) -> GRPOConfig:
    settings: dict[str, Any] = {
        "output_dir": str(out),
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 2,
        "num_generations": 4,
        "max_completion_length": 8,
        "learning_rate": 1e-4,
        "lr_scheduler_type": "constant",
        "beta": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "seed": 3,
    }
    return GRPOConfig(**{**settings, **changes})


class CountingTrainer(CeroGRPOTrainer):
    """Counts the prompts it is really asked to generate for, and keeps the advantages that reach
    the loss."""

    record: Record

    def _generate_single_turn(self, prompt_ids, *rest, **options):
        completions, logprobs = super()._generate_single_turn(prompt_ids, *rest, **options)
        if self._slots is not None:
            real = int((self._slots[self.accelerator.process_index] >= 0).sum())
            self.record.seen.update(self.processing_class.decode(ids) for ids in prompt_ids[:real])
        return completions, logprobs

    def _compute_loss(self, model, inputs):
        self.record.advantages.append(inputs["advantages"].numpy().copy())
        return super()._compute_loss(model, inputs)


def train(
    args: GRPOConfig,
    scheduler: BudgetedScheduler,
    reward: Any = exact,
    resume: str | None = None,
    stop_after: int = 0,
    **options: Any,
) -> tuple[CountingTrainer, Record]:
    record = Record()
    pool = options.pop("pool", None) or dataset()
    trainer = CountingTrainer(
        str(ASSETS / "tiny_digits"), reward, args, pool, scheduler=scheduler, **options
    )
    trainer.record, record.trainer = record, trainer
    trainer.add_callback(record)
    if stop_after:
        trainer.add_callback(_Stop(stop_after))
    trainer.train(resume_from_checkpoint=resume)
    return trainer, record


class _Stop(TrainerCallback):
    """Ends training after some optimizer steps, as a kill would: with whatever checkpoint is
    there."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step >= self.steps:
            control.should_training_stop, control.should_save = True, False


def main() -> None:
    out, settings = Path(sys.argv[1]), dict(pair.split("=") for pair in sys.argv[2:])
    per_device, unit, totals = int(settings["per_device"]), int(settings["unit"]), (5, 6, 3)
    scheduler = RaggedScheduler(3, sum(totals) * unit, unit, 3, 6 * unit, totals)
    trainer, record = train(
        config(out, per_device_train_batch_size=per_device, num_generations=2), scheduler
    )
    state = {key: np.asarray(value).tolist() for key, value in scheduler.state_dict().items()}
    summary = {"rounds": record.rounds, "state": state, "spent": trainer.ledger.spent_rollouts}
    (out / f"rank{trainer.accelerator.process_index}.json").write_text(json.dumps(summary))
    sys.stdout.flush()
    os._exit(0)  # torch's threads may abort a process that is on its way out (decision 0003)


if __name__ == "__main__":
    main()
