"""CERO inside the real TRL trainer: real generation, real optimizer steps, real checkpoints.
Skipped where TRL is missing."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("trl")

import torch
from transformers import TrainerCallback
from trl import GRPOTrainer
from trl_driver import PROMPTS, ROOT, RaggedScheduler, config, dataset, exact, train

from cero_rl.adapters.trl import CeroGRPOTrainer, scheduler_for
from cero_rl.adapters.trl.plan import RunPlan
from cero_rl.ops import group_advantage, reference
from cero_rl.scheduler import CeroScheduler, make_scheduler
from cero_rl.scheduler.critic import CriticOptions, GroupSums, PosteriorCritic

pytestmark = pytest.mark.slow


def ragged(**changes: object) -> RaggedScheduler:
    """3 rounds of 7, 8 and 4 units of 2 rollouts: groups of 2, 4 and 6; two rounds do not fill
    the generation batch of 16."""
    sizes: dict = {
        "rounds": 3,
        "budget": 38,
        "unit": 2,
        "most": 3,
        "capacity": 16,
        "totals": (7, 8, 4),
    }
    return RaggedScheduler(**{**sizes, **changes})


def test_ragged_rounds_are_executed_scored_and_counted(tmp_path: Path) -> None:
    scheduler = ragged()
    trainer, record = train(config(tmp_path), scheduler)
    questions = dataset()["prompt"][:]
    assert [sum(entry["rollouts"]) for entry in record.rounds] == [14, 16, 8]
    assert any(len(set(entry["rollouts"])) > 1 for entry in record.rounds), "groups are ragged"
    used = 0
    for entry in record.rounds:
        wanted = {questions[prompt]: n for prompt, n in zip(entry["prompts"], entry["rollouts"])}
        assert entry["generated"] == wanted, (
            "completions generated per prompt are the Allocation's counts"
        )
        offsets = np.concatenate(([0], np.cumsum(entry["rollouts"])))
        op = group_advantage(
            torch.tensor(entry["rewards"]), torch.from_numpy(offsets), norm="std", eps=1e-4
        )
        assert entry["advantages"] == op.adv.tolist()
        wins = np.zeros(PROMPTS, dtype=int)
        wins[entry["prompts"]] = op.wins.numpy()
        assert entry["successes"] == wins.tolist()
        # What reached the loss: the same numbers, shuffled over two micro-batches, and a 0 in each
        # empty slot.
        losses = np.concatenate(record.advantages[used : used + 2])
        used += 2
        padded = entry["advantages"] + [0.0] * (len(losses) - len(entry["advantages"]))
        np.testing.assert_array_equal(np.sort(losses), np.sort(np.float32(padded)))
    assert used == len(record.advantages)
    assert trainer.ledger.spent_rollouts == trainer.ledger.total_rollouts == 38
    assert scheduler.remaining_rollouts == 0
    assert trainer.state.global_step == 3
    assert trainer.state.log_history[-2]["budget/spent_rollouts"] == 38


def test_equal_groups_get_the_advantages_of_plain_trl(tmp_path: Path) -> None:
    """Uniform scheduling, full groups: TRL's own formula gives the same numbers."""
    scheduler = make_scheduler(
        "uniform",
        num_prompts=PROMPTS,
        rounds=2,
        budget_rollouts=32,
        rollouts_per_unit=4,
        max_units_per_prompt=1,
        capacity_rollouts=16,
    )
    _, record = train(config(tmp_path), scheduler)
    for entry in record.rounds:
        rewards = torch.tensor(entry["rewards"]).view(-1, 4)
        plain = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)
        torch.testing.assert_close(torch.tensor(entry["advantages"]), plain.flatten())


def test_missing_rewards_leave_baseline_and_evidence(tmp_path: Path) -> None:
    def moody(completions: list[str], answer: list[str], **columns: object) -> list[float | None]:
        return [None if i % 3 == 0 else float(i % 2) for i in range(len(completions))]

    scheduler = ragged()
    _, record = train(config(tmp_path), scheduler, moody, norm="rloo")
    for entry in record.rounds:
        known = np.array([reward is not None for reward in entry["rewards"]])
        assert sum(entry["trials"]) == known.sum() < len(known)
        start = 0
        for size in entry["rollouts"]:
            group = slice(start, start + size)
            rewards = torch.tensor([r for r in entry["rewards"][group] if r is not None])
            adv, *_ = reference.group_advantage(
                rewards, torch.tensor([0, len(rewards)]), norm="rloo"
            )
            got = np.array(entry["advantages"][group])
            np.testing.assert_allclose(got[known[group]], adv.numpy(), atol=1e-6)
            assert not got[~known[group]].any()
            start += size
    assert scheduler.posterior.a.sum() + scheduler.posterior.b.sum() == 2 * PROMPTS + sum(
        sum(e["trials"]) for e in record.rounds
    )


class Watched(CeroGRPOTrainer):
    """Keeps the rows that reach the loss."""

    rows: list[dict]

    def _compute_loss(self, model, inputs):
        self.rows.append(inputs)
        return super()._compute_loss(model, inputs)


class Gradients(TrainerCallback):
    """At an optimizer step: the gradient that has come together, and that of the mean over the
    real rows alone, in one piece."""

    def __init__(self, trainer: Watched) -> None:
        self.trainer, self.pairs = trainer, []

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        trainer, rows = self.trainer, self.trainer.rows
        model = trainer.model
        got = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        merged = {}
        real = torch.cat([batch["completion_mask"].any(1) for batch in rows])
        for key, value in rows[0].items():
            whole = torch.is_tensor(value) and value.dim() > 0
            merged[key] = torch.cat([batch[key] for batch in rows])[real] if whole else value
        accumulation, name = trainer.current_gradient_accumulation_steps, trainer.loss_type
        trainer.current_gradient_accumulation_steps = 1
        # bnpo with one row in a micro-batch is the mean over rows of the mean over tokens
        trainer.loss_type = "grpo" if name == "bnpo" else name
        loss = GRPOTrainer._compute_loss(trainer, model, merged)
        trainer.current_gradient_accumulation_steps, trainer.loss_type = accumulation, name
        used = [p for p in model.parameters() if p.grad is not None]
        wanted = torch.cat([g.flatten() for g in torch.autograd.grad(loss, used)])
        self.pairs.append((got.clone(), wanted, int(real.sum()), len(real)))
        rows.clear()


@pytest.mark.covers("trainer's slots without a rollout")
@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "bnpo"])
def test_slots_without_a_rollout_do_not_scale_the_gradient(tmp_path: Path, loss_type: str) -> None:
    """5 rollouts in 4 micro-batches of 2 slots were 5/8 of their gradient."""
    one_row = loss_type == "bnpo"
    args = config(
        tmp_path,
        per_device_train_batch_size=1 if one_row else 2,
        gradient_accumulation_steps=8 if one_row else 4,
        num_generations=2,
        loss_type=loss_type,
        beta=0.05,
        max_grad_norm=0.0,
    )
    scheduler = RaggedScheduler(2, 13, 1, 3, 8, (5, 8))
    # every completion another reward, so that there is a gradient
    reward = lambda completions, **columns: [len(c) + i / 8 for i, c in enumerate(completions)]
    trainer = Watched(
        str(ROOT / "recipes/assets/tiny_digits"), reward, args, dataset(), scheduler=scheduler
    )
    trainer.rows = []
    watch = Gradients(trainer)
    trainer.add_callback(watch)
    trainer.train()
    assert [(real, slots) for _, _, real, slots in watch.pairs] == [(5, 8), (8, 8)]
    for got, wanted, _, _ in watch.pairs:
        assert wanted.norm() > 1e-3
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-6)


def test_success_can_come_from_one_of_several_rewards(tmp_path: Path) -> None:
    def style(completions: list[str], **columns: object) -> list[float]:
        return [5.0] * len(completions)

    _, record = train(config(tmp_path, max_steps=1), ragged(), [exact, style], success_from="exact")
    entry = record.rounds[0]
    assert sum(entry["successes"]) == sum(reward - 5.0 for reward in entry["rewards"])
    with pytest.raises(ValueError, match="success_from: got 'grade', wanted one of exact, style"):
        CeroGRPOTrainer(
            str(ROOT / "recipes/assets/tiny_digits"),
            [exact, style],
            config(tmp_path),
            dataset(),
            scheduler=ragged(),
            success_from="grade",
        )


def critic() -> PosteriorCritic:
    return PosteriorCritic(PROMPTS, CriticOptions())


def test_a_critic_gives_the_baseline(tmp_path: Path) -> None:
    """Groups of one and groups of equal rewards get an advantage, and the next round is measured by
    what the last one showed."""
    own = critic()
    options = {"critic": own, "norm": "center"}
    _, record = train(config(tmp_path), ragged(budget=19, unit=1, capacity=8), **options)
    again = critic()
    for entry in record.rounds:
        rewards, sizes = np.array(entry["rewards"]), np.array(entry["rollouts"])
        starts = np.cumsum(sizes) - sizes
        sums = np.add.reduceat(rewards, starts)
        groups = GroupSums(np.array(entry["prompts"]), sums, sums, sizes)
        expected = again.predict(groups)
        again.observe(groups, expected)
        again.advance(1.0)
        for j, (first, size) in enumerate(zip(starts, sizes)):
            mean, strength = expected.mean[j], expected.strength[j]
            for r in range(first, first + size):
                others = sums[j] - rewards[r]
                wanted = rewards[r] - (strength * mean + others) / (strength + size - 1)
                assert entry["advantages"][r] == pytest.approx(wanted, abs=1e-6)
    assert own.state_dict()["clock"] == len(record.rounds)


@pytest.mark.parametrize(("iterations", "with_critic"), [(1, False), (2, False), (1, True)])
def test_resume_restores_scheduler_budget_and_rounds(
    tmp_path: Path, iterations: int, with_critic: bool
) -> None:
    """Killed in the middle of a round, right after a checkpoint was asked for: the run goes on
    as if nothing had happened."""
    # Two optimizer steps a generation: checkpoints asked for at step 3 wait for the end of the
    # round.
    settings = {"save_strategy": "steps", "save_steps": 3, "num_iterations": iterations}
    settings |= {"steps_per_generation": 4, "per_device_train_batch_size": 4}
    own = (lambda: {"critic": critic()}) if with_critic else dict
    whole, straight = train(config(tmp_path / "whole", **settings), ragged(), **own())
    per_round = 2 * iterations
    assert whole.state.global_step == 3 * per_round
    saved = {int(path.name.split("-")[1]) for path in (tmp_path / "whole").glob("checkpoint-*")}
    assert saved
    assert all(step % per_round == 0 for step in saved), "checkpoints are written between rounds"

    first = ragged()
    train(config(tmp_path / "cut", **settings), first, stop_after=2 * per_round + 1, **own())
    last = max(
        (tmp_path / "cut").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1])
    )
    second = ragged()
    again = config(tmp_path / "cut", **settings)
    trainer, rest = train(again, second, resume=str(last), **own())
    done = int(last.name.split("-")[1]) // per_round
    assert done >= 1
    assert rest.rounds == straight.rounds[done:], "same plans, same completions, same advantages"
    assert trainer.ledger.spent_rollouts == 38
    assert trainer.state.global_step == 3 * per_round
    with pytest.raises(ValueError, match="its pool is"):
        train(
            config(tmp_path / "cut", **settings),
            ragged(),
            resume=str(last),
            pool=dataset().shuffle(seed=1),
        )


def test_the_end_of_the_budget_ends_training(tmp_path: Path) -> None:
    """Published CERO may have rounds that execute nothing; they cost no step, and max_steps is
    only an upper bound."""
    scheduler = CeroScheduler(PROMPTS, 8, 32, 4, 1, 16, price_init=1.0, spend_down=True)
    trainer, record = train(config(tmp_path, save_strategy="steps", save_steps=100), scheduler)
    assert trainer.ledger.spent_rollouts == 32
    assert trainer.state.global_step == len(record.rounds) < trainer.run_plan.optimizer_steps == 8
    assert (tmp_path / f"checkpoint-{trainer.state.global_step}" / "cero_scheduler.npz").is_file()
    with pytest.raises(ValueError, match="no round left: 32 of 32 rollouts are spent"):
        trainer.train()


def test_evaluation_is_trls_own(tmp_path: Path) -> None:
    args = config(
        tmp_path,
        eval_strategy="steps",
        eval_steps=1,
        per_device_eval_batch_size=4,
        num_generations_eval=2,
    )
    scheduler = ragged()
    trainer, record = train(args, scheduler, eval_dataset=dataset(4))
    logs = [entry for entry in trainer.state.log_history if "eval_reward" in entry]
    assert len(logs) == 3
    assert trainer.num_generations == 4
    assert (
        trainer.ledger.spent_rollouts
        == 38
        == sum(sum(entry["rollouts"]) for entry in record.rounds)
    )


# 1: the processes do not divide a round, so one of them has an empty slot
@pytest.mark.parametrize("unit", [pytest.param(2, marks=pytest.mark.long), 1])
def test_two_processes_take_the_same_decisions(tmp_path: Path, unit: int) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = [
        subprocess.Popen(
            [
                sys.executable,
                str(ROOT / "tests/adapters/trl_driver.py"),
                str(tmp_path),
                "per_device=4",
                f"unit={unit}",
            ],
            env={
                **os.environ,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": str(ROOT),
                "CUDA_VISIBLE_DEVICES": "",
                "ACCELERATE_USE_CPU": "true",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=240)[0] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], "\n".join(outputs)[-4000:]
    zero, one = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2))
    assert zero["state"] == one["state"]
    assert zero["spent"] == one["spent"] == 14 * unit
    questions = dataset()["prompt"][:]
    for mine, theirs in zip(zero["rounds"], one["rounds"], strict=True):
        assert {k: v for k, v in mine.items() if k != "generated"} == {
            k: v for k, v in theirs.items() if k != "generated"
        }
        together = {
            q: mine["generated"].get(q, 0) + theirs["generated"].get(q, 0) for q in questions
        }
        wanted = {questions[prompt]: n for prompt, n in zip(mine["prompts"], mine["rollouts"])}
        assert {q: n for q, n in together.items() if n} == wanted


def test_sizes_that_do_not_fit_say_so(tmp_path: Path) -> None:
    def build(scheduler: object, **changes: object) -> CeroGRPOTrainer:
        return CeroGRPOTrainer(
            "unused", exact, config(tmp_path, **changes), dataset(), scheduler=scheduler
        )

    with pytest.raises(
        ValueError,
        match=r"a round of 24 rollouts does not fit generation_batch_size = 8 \* 1 \* 2 = 16",
    ):
        build(ragged(capacity=24))
    with pytest.raises(
        ValueError, match=r"1 \* 1 = 1 is not a multiple of gradient_accumulation_steps = 2"
    ):
        build(ragged(), steps_per_generation=1)
    with pytest.raises(
        ValueError, match=r"max_steps = 4 is more than the budget lasts: 3 rounds of up to 16"
    ):
        build(ragged(), max_steps=4)
    with pytest.raises(ValueError, match="scale_rewards: got 'batch'"):
        build(ragged(), scale_rewards="batch")
    with pytest.raises(ValueError, match="scheduler: has 12 prompts, the data set 5 rows"):
        CeroGRPOTrainer("unused", exact, config(tmp_path), dataset(5), scheduler=ragged())
    with pytest.raises(ValueError, match="does not support rollout_func"):
        CeroGRPOTrainer(
            "unused", exact, config(tmp_path), dataset(), scheduler=ragged(), rollout_func=exact
        )


def test_the_snippet_of_the_docs_trains(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "adapters.md").read_text(encoding="utf-8")
    code = re.search(r"<!-- snippet: trl -->\n```python\n(.*?)```", page, re.DOTALL).group(1)
    assert len(code.strip().splitlines()) < 10
    names = {
        "args": config(tmp_path),
        "train_dataset": dataset(),
        "reward_funcs": exact,
        "model": str(ROOT / "recipes/assets/tiny_digits"),
    }
    exec(code, names)
    assert names["trainer"].ledger.spent_rollouts == 4 * 16


def test_scheduler_for_spends_what_the_script_would_have_spent(tmp_path: Path) -> None:
    scheduler = scheduler_for(config(tmp_path), dataset(), rounds=5)
    assert scheduler.remaining_rollouts == 5 * 16
    plan = RunPlan(
        per_device=8,
        processes=2,
        steps_per_generation=4,
        num_iterations=2,
        gradient_accumulation=4,
        rounds=10,
    )
    assert (plan.rollouts_per_round, plan.optimizer_steps) == (64, 20)
