"""TRL 1.16: a GRPOTrainer whose rollouts are allocated by a scheduler. GRPOConfig and reward
functions stay as they are.

    from cero_rl.adapters.trl import CeroGRPOTrainer, scheduler_for

    scheduler = scheduler_for(args, train_dataset, rounds=200)
    trainer = CeroGRPOTrainer(model, reward_funcs, args, train_dataset, scheduler=scheduler)

What TRL does differently here, and where:
  - The data loader carries slots, not prompts. It reads a batch and an accumulation window ahead,
    before the rewards that decide the next round exist; the prompts of a round are put in when it
    is generated (`_generate_and_score_completions`).
  - A prompt stands in a round as often as it has rollouts, one completion per row
    (`_generate_single_turn`), so groups are ragged.
  - Advantages come from cero_rl.ops.group_advantage over the whole round; TRL's reshape by
    num_generations is overwritten.
  - The rewards are gathered from all processes, so every process tells the same scheduler the same
    counts.
  - A round that does not fill its slots leaves rows without a rollout; losses that are a mean over
    rows or micro-batches are scaled so that these do not count (`_compute_loss`).
  - Training ends with the budget; checkpoints are written between rounds and hold the scheduler.
    Evaluation is TRL's own.
"""

from __future__ import annotations

# pyright: reportMissingImports=false, reportPrivateImportUsage=false
# pyright: reportAttributeAccessIssue=false
import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather
from datasets import Dataset
from torch.utils.data import SequentialSampler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import GRPOConfig, GRPOTrainer

from cero_rl.adapters.rounds import (
    STATE_FILE,
    AdvantageRule,
    RoundResult,
    close_round,
    deal_slots,
    load_state,
    open_round,
    pool_fingerprint,
    published_cero,
    rollout_groups,
    save_state,
    score_round,
)
from cero_rl.adapters.trl.plan import plan_run
from cero_rl.ops.advantage import Norm
from cero_rl.scheduler import Scheduler, make_scheduler
from cero_rl.scheduler.critic import PosteriorCritic
from cero_rl.scheduler.ledger import Ledger
from cero_rl.types import Allocation

_TRL_EPS = 1e-4  # what TRL adds to the standard deviation
_ROW_MEANS = ("grpo", "sapo", "dr_grpo", "luspo")  # losses that are a mean over rows
_UNSUPPORTED = ("rollout_func", "tools", "environment_factory")


def scheduler_for(
    args: GRPOConfig,
    train_dataset: Dataset,
    rounds: int,
    *,
    name: str = "cero",
    budget_rollouts: int | None = None,
    rollouts_per_unit: int | None = None,
    max_units_per_prompt: int = 1,
    saturation: float = 1.0,
    step_scale: float = 1.0,
    forgetting: float = 1.0,
) -> Scheduler:
    """The scheduler that fits a GRPO script: a round is a generation batch, a unit is
    num_generations rollouts.

    The default budget is what `rounds` generation batches of the same script would cost; it is
    spent exactly. step_scale is the dual step in units of the published 1/sqrt(rounds). Raises
    ValueError for sizes that contradict each other.
    """
    capacity = int(args.generation_batch_size or 0)
    return make_scheduler(
        name,
        num_prompts=len(train_dataset),
        rounds=rounds,
        budget_rollouts=rounds * capacity if budget_rollouts is None else budget_rollouts,
        rollouts_per_unit=int(args.num_generations or 0)
        if rollouts_per_unit is None
        else rollouts_per_unit,
        max_units_per_prompt=max_units_per_prompt,
        capacity_rollouts=capacity,
        saturation=saturation,
        forgetting=forgetting,
        cero=published_cero(name, rounds, step_scale),
        seed=args.seed,
    )


class _RoundEnd(TrainerCallback):
    """Moves checkpoints to the end of the round they fall into, and stops training when no round is
    left."""

    def __init__(self, trainer: CeroGRPOTrainer) -> None:
        self.trainer = trainer
        self.save_due = False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.trainer.critic is not None:  # the policy moved, by this step's share of a full one
            (rate, *_) = kwargs["lr_scheduler"].get_last_lr()
            self.trainer.critic.advance(rate / args.learning_rate)
        if not self.trainer.between_rounds:
            if not control.should_training_stop:
                self.save_due, control.should_save = self.save_due or control.should_save, False
            return
        control.should_save, self.save_due = control.should_save or self.save_due, False
        if self.trainer.plan_round() is None:
            control.should_save = control.should_save or (
                not control.should_training_stop and args.save_strategy == "steps"
            )
            control.should_training_stop = True


class CeroGRPOTrainer(GRPOTrainer):
    """GRPOTrainer under a rollout budget. TRL's arguments keep their meaning; num_generations no
    longer shapes the training groups.

    scheduler must have one prompt per row of train_dataset and be in the same state on every
    process. A rollout counts as a success when its summed reward, or the reward function named by
    success_from, is above success_threshold. norm is that of cero_rl.ops.group_advantage; None
    follows scale_rewards ("group": TRL's own formula, "none": centred). A critic
    (PosteriorCritic over the rows of train_dataset, docs/critic.md) gives the baseline instead of
    the groups, and unless norm is "center" the round's root mean square its scale; it is saved and
    restored with the scheduler.

    Raises ValueError, with the equation, for a config, scheduler and data set that do not fit
    together, and for what is not supported: iterable and image data sets, rollout_func, tools,
    environments, scale_rewards="batch", "normalize_then_sum".
    """

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: GRPOConfig | None = None,
        train_dataset: Dataset | None = None,
        *,
        scheduler: Scheduler,
        success_threshold: float = 0.5,
        success_from: str | None = None,
        norm: Norm | None = None,
        critic: PosteriorCritic | None = None,
        **trl_options: Any,  # the rest of GRPOTrainer's arguments, unchanged
    ) -> None:
        if args is None or not isinstance(train_dataset, Dataset):
            raise ValueError(
                "CeroGRPOTrainer: wanted args (a GRPOConfig) and train_dataset (a "
                "datasets.Dataset, not an iterable one)"
            )
        refused = [name for name in _UNSUPPORTED if trl_options.get(name)]
        refused += [
            f"{column} column"
            for column in ("image", "images")
            if column in train_dataset.column_names
        ]
        if refused:
            raise ValueError(
                f"CeroGRPOTrainer: does not support {', '.join(refused)}; leave it out or "
                "use GRPOTrainer"
            )
        own: Any = copy.copy(args)  # max_steps is set below; the caller's object stays as it is
        self.rule = _advantage_rule(own, norm, success_threshold)
        self.run_plan = plan_run(own, scheduler, len(train_dataset))
        if own.max_steps <= 0:
            own.max_steps = self.run_plan.optimizer_steps
        self.scheduler = scheduler
        self.critic = critic
        self.ledger = Ledger(
            scheduler.remaining_rollouts
            + (scheduler.pending.total_rollouts if scheduler.pending else 0)
        )
        self.last_round: RoundResult | None = None  # the round being trained on
        self._planned: Allocation | None = None
        self._slots: np.ndarray | None = None  # i64[processes, n] while a round is being generated
        # slots over rollouts, and micro-batches over those with a rollout, of the round that trains
        self._row_scale = self._micro_scale = 1.0
        # f32[processes * n, reward functions] of that round
        self._gathered: torch.Tensor | None = None
        super().__init__(model, reward_funcs, own, train_dataset, **trl_options)
        if success_from is not None and success_from not in self.reward_func_names:
            raise ValueError(
                f"success_from: got {success_from!r}, wanted one of "
                f"{', '.join(self.reward_func_names)}"
            )
        self._signal = None if success_from is None else self.reward_func_names.index(success_from)
        self._rows = self._remove_unused_columns(train_dataset, description="Training")
        self._pool = pool_fingerprint(train_dataset["prompt"])
        self.add_callback(_RoundEnd(self))

    # --- rounds

    @property
    def between_rounds(self) -> bool:
        """Whether all micro-steps of the current round are done."""
        return self._step % self.run_plan.micro_steps_per_round == 0

    def plan_round(self) -> Allocation | None:
        """The next round's Allocation, planned once; None when the budget or the rounds are used
        up."""
        if self._planned is None:
            self._planned = open_round(self.scheduler)
        return self._planned

    def get_train_dataloader(self) -> Any:
        """One slot per micro-step and process; what a slot means is decided when its round is
        generated."""
        slots: Any = range(
            self.run_plan.rounds * self.run_plan.micro_steps_per_round * self.run_plan.processes
        )
        in_order: Any = SequentialSampler
        return self._get_dataloader(
            dataset=slots,
            description="Training",
            batch_size=1,
            sampler_fn=in_order,
            is_training=True,
        )

    @contextmanager
    def _round(self, allocation: Allocation) -> Iterator[np.ndarray]:
        """While it is open, TRL generates one completion per row and reshapes to a single group;
        gives this process's slots."""
        plan, saved = self.run_plan, self.num_generations
        plan.check_round(allocation.total_rollouts)
        self._slots = deal_slots(
            allocation.total_rollouts, plan.processes, plan.steps_per_generation
        )
        self.num_generations = self._slots.size
        try:
            yield self._slots[self.accelerator.process_index]
        finally:
            self._slots, self.num_generations = None, saved

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        model: Any = self.model
        if not model.training:
            return super()._generate_and_score_completions(inputs)
        allocation = self.plan_round()
        if allocation is None:
            raise ValueError(
                f"no round left: {self.ledger.spent_rollouts} of "
                f"{self.ledger.total_rollouts} rollouts are spent"
            )
        with self._round(allocation) as own:
            prompts, groups = allocation.prompt_ids, rollout_groups(allocation)
            # an empty slot repeats the process's last rollout
            wanted = np.where(own >= 0, own, own.max(initial=0))
            rows = [dict(self._rows[int(prompts[groups[rollout]])]) for rollout in wanted]
            output = super()._generate_and_score_completions(rows)
            return self._finish_round(allocation, output)

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        inputs = super()._prepare_inputs(generation_batch)
        policy: Any = self.model
        if self.loss_type == "bnpo" and policy.training and self._row_scale != 1.0:
            # which rows share a micro-batch is drawn on each process: only they can count
            buffered: Any = self._buffered_inputs
            full = [bool(batch["completion_mask"].any()) for batch in buffered]
            shares = gather(torch.tensor([float(np.mean(full))], device=self.accelerator.device))
            self._micro_scale = 1.0 / float(shares.mean())
        return inputs

    def _compute_loss(self, model: Any, inputs: Any) -> torch.Tensor:
        """TRL's loss, whose mean over rows (or, for bnpo, over micro-batches) counts the empty ones
        as zeros: scaled to a mean over the real ones. An entropy bonus and a router's loss get the
        same factor."""
        loss = super()._compute_loss(model, inputs)
        policy: Any = self.model
        if not policy.training:
            return loss
        if self.loss_type in _ROW_MEANS:
            return loss * self._row_scale
        return loss * self._micro_scale if self.loss_type == "bnpo" else loss

    def _generate_single_turn(
        self,
        prompt_ids: Any,
        images: Any,
        multimodal_fields: Any,
        num_generations: int,
        has_tool_images: bool = False,
    ) -> Any:
        """One completion per row. Empty slots get a copy of the last completion instead of a new
        one."""
        if self._slots is None:
            return super()._generate_single_turn(
                prompt_ids, images, multimodal_fields, num_generations, has_tool_images
            )
        # The same number on every process, which vLLM and sharded models need.
        made = int((self._slots >= 0).sum(axis=1).max())
        completions, logprobs = super()._generate_single_turn(
            prompt_ids[:made], images, multimodal_fields, 1, has_tool_images
        )
        copies = len(prompt_ids) - made
        completions = [*completions, *[list(completions[-1]) for _ in range(copies)]]
        if logprobs is not None:
            logprobs = [*logprobs, *[list(logprobs[-1]) for _ in range(copies)]]
        return completions, logprobs

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any
    ) -> torch.Tensor:
        """f32[processes * n, functions], the same on every process; NaN in empty slots, which TRL
        then leaves out."""
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if self._slots is not None:
            rewards[torch.from_numpy(self._slots.reshape(-1) < 0)] = torch.nan
            self._gathered = rewards
        return rewards

    def _finish_round(self, allocation: Allocation, output: dict[str, Any]) -> dict[str, Any]:
        """Ragged advantages in, evidence to the scheduler; called once per round on every
        process."""
        assert self._slots is not None
        assert self._gathered is not None
        flat, (_, width) = self._slots.reshape(-1), self._slots.shape
        real = np.flatnonzero(flat >= 0)  # rollouts are dealt in order
        per_func = self._gathered.float().cpu()[torch.from_numpy(real)]
        total = (per_func * self.reward_weights.cpu()).nansum(dim=1)
        total[per_func.isnan().all(dim=1)] = torch.nan
        signal = None if self._signal is None else per_func[:, self._signal].numpy()
        result = score_round(
            allocation,
            total.numpy(),
            self.scheduler.value.shape[0],
            self.rule,
            signal,
            self.critic,
        )
        close_round(self.scheduler, result)
        self.ledger.book(allocation.total_rollouts)
        self.last_round, self._planned, self._gathered = result, None, None

        self._row_scale, self._micro_scale = flat.shape[0] / real.shape[0], 1.0
        advantages = np.zeros(flat.shape[0], dtype=np.float32)
        advantages[real] = result.advantages
        first = self.accelerator.process_index * width
        output["advantages"] = torch.from_numpy(advantages[first : first + width]).to(
            output["advantages"].device
        )
        if real.shape[0] < flat.shape[0]:  # the same on every process
            mask = output["completion_mask"]
            mask = mask * torch.from_numpy(flat[first : first + width] >= 0).to(mask).unsqueeze(1)
            tokens: Any = gather(mask.sum())
            output["completion_mask"], output["num_items_in_batch"] = mask, tokens.sum()
        self._record(result, advantages)
        return output

    def _record(self, result: RoundResult, advantages: np.ndarray) -> None:
        """Metrics of the round, and the advantages in TRL's completion log."""
        log, metrics, sizes = (
            self._logs["advantages"],
            self._metrics["train"],
            result.allocation.rollouts,
        )
        for _ in range(advantages.shape[0]):
            log.pop()
        log.extend(advantages.tolist())
        metrics["frac_reward_zero_std"][-1] = 1.0 - float(sizes[result.live].sum()) / int(
            sizes.sum()
        )
        metrics["cero/rollouts_mean"].append(float(sizes.mean()))
        metrics["cero/rollouts_max"].append(float(sizes.max()))
        metrics["cero/effective_group_rate"].append(float(result.live.mean()))
        metrics["cero/missing_rewards"].append(float(np.isnan(result.rewards).sum()))
        for name, value in self.scheduler.metrics().items():
            metrics[name].append(float(value))
        for name, value in self.ledger.metrics().items():
            metrics[name] = [value]  # the latest, not a mean over the logging window

    # --- checkpoints

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if self.args.should_save:  # first, so that a checkpoint with a trainer state always has it
            folder = (
                Path(self._get_output_dir(trial=trial))
                / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            )
            save_state(folder / STATE_FILE, self.scheduler, self.ledger, self._pool, self.critic)
        super()._save_checkpoint(model, trial)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            file = Path(checkpoint) / STATE_FILE
            load_state(file, self.scheduler, self.ledger, self._pool, self.critic)
            self._planned = None


def _advantage_rule(args: GRPOConfig, norm: Norm | None, success_threshold: float) -> AdvantageRule:
    if norm is not None:
        return AdvantageRule(norm, success_threshold=success_threshold)
    norms: dict[str, Norm] = {"group": "std", "none": "center"}
    if args.scale_rewards not in norms:
        raise ValueError(
            f"scale_rewards: got {args.scale_rewards!r}, wanted 'group' or 'none', or give norm"
        )
    return AdvantageRule(
        norms[args.scale_rewards], eps=_TRL_EPS, ddof=1, success_threshold=success_threshold
    )
