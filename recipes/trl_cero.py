"""A TRL 1.16 GRPO script, and the lines that put it under a CERO budget. Runs on one CPU core in a
few minutes.

    make trl-example                                            CERO
    make trl-example ARGS="--scheduler uniform"                 GRPO's own allocation, same budget

The pool is unfiltered: most prompts are solved, impossible or a lottery, and one in five can teach
the model something. The last table says where the rollouts went.
"""

from __future__ import annotations

# pyright: reportMissingImports=false, reportPrivateImportUsage=false
import argparse
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything is in this repository

import torch
from datasets import Dataset, disable_progress_bars, load_dataset
from transformers import PrinterCallback, TrainerCallback
from transformers.utils.logging import disable_progress_bar
from trl import GRPOConfig

from cero_rl.adapters.trl import CeroGRPOTrainer, scheduler_for

ASSETS = Path(__file__).resolve().parent / "assets"


def exact(completions: list[str], answer: list[str], **columns: object) -> list[float]:
    """A reward function with TRL's signature."""
    return [
        float(completion.strip() == wanted)
        for completion, wanted in zip(completions, answer, strict=True)
    ]


def config(options: argparse.Namespace) -> GRPOConfig:
    return GRPOConfig(
        output_dir=options.out,
        per_device_train_batch_size=64,
        gradient_accumulation_steps=4,  # a round: 64 * 4 = 256 rollouts
        num_generations=8,
        max_completion_length=12,
        learning_rate=1e-4,
        lr_scheduler_type="linear",
        warmup_steps=3,
        beta=0.0,
        logging_steps=1,
        disable_tqdm=True,
        save_strategy="no",
        report_to="none",
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=False,
        bf16=False,
        seed=options.seed,
    )


class Report(TrainerCallback):
    """One line every few rounds, and how many rollouts each kind of prompt got."""

    def __init__(self, kinds: list[str], every: int) -> None:
        self.kinds, self.every = kinds, every
        self.trainer: Any = None
        self.spent: list[dict[str, int]] = []

    def on_step_end(self, args, state, control, **kwargs):
        allocation = self.trainer.last_round.allocation
        row = dict.fromkeys(sorted(set(self.kinds)), 0)
        for prompt, rollouts in zip(allocation.prompt_ids, allocation.rollouts, strict=True):
            row[self.kinds[prompt]] += int(rollouts)
        self.spent.append(row)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if (
            logs
            and "reward" in logs
            and (state.global_step % self.every == 0 or state.global_step == 1)
        ):
            print(
                f"round {state.global_step:3d}/{state.max_steps}  reward "
                f"{logs['reward']:.3f}  effective groups "
                f"{logs['cero/effective_group_rate']:.2f}  budget "
                f"{logs['budget/spent_rollouts']:.0f}/{logs['budget/total_rollouts']:.0f}"
                f"  {logs['step_time']:.1f} s",
                flush=True,
            )


@torch.no_grad()
def heldout_accuracy(trainer: CeroGRPOTrainer, rows: Dataset, samples: int = 2) -> float:
    """Share of sampled answers (T = 1) that are right, in [0, 1]."""
    tokenizer: Any = trainer.processing_class
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    model.eval()
    batch = tokenizer(rows["prompt"][:], padding=True, padding_side="left", return_tensors="pt").to(
        model.device
    )
    right = 0.0
    for _ in range(samples):
        out = model.generate(**batch, max_new_tokens=12, do_sample=True, top_k=0)
        texts = tokenizer.batch_decode(
            out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True
        )
        right += sum(exact(texts, rows["answer"][:]))
    return right / (samples * len(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scheduler", choices=("cero", "uniform"), default="cero")
    parser.add_argument("--rounds", type=int, default=80)
    parser.add_argument("--prompts", type=int, default=480)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="runs/trl_cero")
    options = parser.parse_args()

    disable_progress_bar()
    disable_progress_bars()
    pool = load_dataset(
        "json",
        data_files=str(ASSETS / "digits_unfiltered.jsonl"),
        split=f"train[:{options.prompts}]",
    )
    heldout = load_dataset(
        "json", data_files=str(ASSETS / "digits_heldout.jsonl"), split="train[:600]"
    )
    args = config(options)

    # --- what CERO adds; without it this is GRPOTrainer(...). A small pool that is seen often:
    # prompts wear out slowly (saturation below 1), so that what is known about them decides. ---
    scheduler = scheduler_for(
        args, pool, rounds=options.rounds, name=options.scheduler, saturation=0.3, step_scale=2.0
    )
    trainer = CeroGRPOTrainer(str(ASSETS / "tiny_digits"), exact, args, pool, scheduler=scheduler)

    report = Report(pool["kind"][:], every=10)
    report.trainer = trainer
    trainer.add_callback(report)
    trainer.remove_callback(PrinterCallback)
    print(f"{options.scheduler}: {trainer.run_plan}")
    before = heldout_accuracy(trainer, heldout)
    trainer.train()
    after = heldout_accuracy(trainer, heldout)

    third = max(len(report.spent) // 3, 1)
    print("\nshare of rollouts   " + "".join(f"{kind:>12}" for kind in report.spent[0]))
    counts = {kind: report.kinds.count(kind) for kind in report.spent[0]}
    for label, rounds in (
        ("first third", report.spent[:third]),
        ("last third", report.spent[-third:]),
    ):
        total = sum(sum(row.values()) for row in rounds)
        print(
            f"{label:<20}"
            + "".join(f"{sum(row[kind] for row in rounds) / total:12.2f}" for kind in counts)
        )
    print(
        f"{'share of the pool':<20}"
        + "".join(f"{count / len(pool):12.2f}" for count in counts.values())
    )
    ledger = trainer.ledger
    print(
        f"\nheld-out accuracy {before:.3f} -> {after:.3f}; spent {ledger.spent_rollouts} of "
        f"{ledger.total_rollouts} rollouts"
    )


if __name__ == "__main__":
    main()
