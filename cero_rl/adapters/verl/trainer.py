"""verl 0.9, V1: a synchronous PPO trainer whose prompts and group sizes come from a scheduler.

Where it takes hold, all of them verl's own extension points or overridable methods of its trainer:
  - trainer mode `cero` (register_trainer), loaded by VERL_USE_EXTERNAL_MODULES;
  - the training batch is a round: the allocated prompts, each with its `__rollout_n__`, which
    verl's AgentLoopManagerTQ obeys;
  - advantage estimators `cero_std`, `cero_center`, `cero_rloo`, `cero_maxrl` (register_adv_est):
    the ragged op by prompt uid;
  - scores are read back from the TransferQueue once the round's advantages are known, and become
    the scheduler's evidence;
  - the scheduler's state lies beside verl's in every `global_step_N` folder.
verl 0.9 has no setting for a custom prompt sampler (`trainer.v1.sampler.custom_sampler` samples
finished trajectories), so the data loader is left alone and its order is not used. One driver
process holds the scheduler; the workers need to know nothing.
"""

from __future__ import annotations

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transfer_queue as tq
from omegaconf import OmegaConf, open_dict
from verl.trainer.ppo.core_algos import register_adv_est
from verl.trainer.ppo.v1 import PPOTrainerSync, register_trainer
from verl.utils import tensordict_utils as tu
from verl.utils.dataset.rl_dataset import collate_fn

from cero_rl.adapters.rounds import (
    STATE_FILE,
    AdvantageRule,
    RoundResult,
    close_round,
    load_state,
    open_round,
    pool_fingerprint,
    save_state,
    score_round,
)
from cero_rl.adapters.verl.settings import CeroSettings
from cero_rl.ops import group_advantage
from cero_rl.ops.advantage import Norm
from cero_rl.scheduler import Scheduler
from cero_rl.scheduler.ledger import Ledger
from cero_rl.types import Allocation

_PREFIX = "cero_"
_NORMS: tuple[Norm, ...] = ("std", "center", "rloo", "maxrl")


def _estimator(norm: Norm) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    def estimate(
        token_level_rewards: torch.Tensor,
        response_mask: torch.Tensor,
        index: np.ndarray,
        config: Any = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """advantages f32[B, T] and returns (the same), from rewards [B, T] and the prompt uid of
        each row.

        Groups may have any size; a lone rollout gets 0. A NaN reward leaves its group's baseline
        and gets 0.
        """
        scores = token_level_rewards.sum(dim=-1).float().cpu()
        _, groups = np.unique(np.asarray(index, dtype=str), return_inverse=True)
        present = torch.from_numpy(np.flatnonzero(~scores.isnan().numpy()))
        order = present[torch.from_numpy(np.argsort(groups[present.numpy()], kind="stable"))]
        offsets = np.concatenate(([0], np.cumsum(np.bincount(groups[present.numpy()]))))
        scored = group_advantage(scores[order].contiguous(), torch.from_numpy(offsets), norm=norm)
        advantages = torch.zeros_like(scores)
        advantages[order] = scored.adv
        spread = advantages.to(response_mask.device).unsqueeze(-1) * response_mask
        return spread, spread

    return estimate


for _norm in _NORMS:
    register_adv_est(f"{_PREFIX}{_norm}")(_estimator(_norm))


@register_trainer("cero")
class CeroPPOTrainer(PPOTrainerSync):
    """verl's synchronous trainer under a rollout budget; settings in the `cero` block
    (CeroSettings).

    Raises ValueError, before any worker starts, for settings that do not fit together or that a
    budget cannot honour.
    """

    def __init__(self, config: Any) -> None:
        block: Any = OmegaConf.to_container(config.cero) if "cero" in config else None
        self.settings = CeroSettings.read(block)
        _check(config)
        # the name chose this class; from here on it is verl's synchronous mode
        with open_dict(config):
            config.trainer.v1.trainer_mode = "sync"
            config.trainer.total_training_steps = self.settings.rounds
            config.trainer.total_epochs = self.settings.rounds
        super().__init__(config)
        self.rule = AdvantageRule(
            config.algorithm.adv_estimator.removeprefix(_PREFIX),
            success_threshold=self.settings.success_threshold,
        )
        self.last_round: RoundResult | None = None
        self._planned: Allocation | None = None
        # prompt uid -> position in the Allocation, while a round is open
        self._groups: dict[str, int] = {}

    def _init_dataloader(self) -> None:
        super()._init_dataloader()
        pool: Any = self.train_dataset
        rollout_n = self.config.actor_rollout_ref.rollout.n
        self.scheduler: Scheduler = self.settings.make_scheduler(
            len(pool), self.config.data.train_batch_size, rollout_n
        )
        self.ledger = Ledger(self.scheduler.remaining_rollouts)
        self._pool = pool_fingerprint(pool[i]["raw_prompt"] for i in range(len(pool)))

    # --- rounds

    def plan_round(self) -> Allocation | None:
        """The next round's Allocation, planned once; None when the budget or the rounds are used
        up."""
        if self._planned is None:
            self._planned = open_round(self.scheduler)
        return self._planned

    def _next_train_batch(self, num_prompts: int | None = None) -> Any:
        """The round as verl's prompt batch: one row per group, with its size in `__rollout_n__`."""
        allocation = self.plan_round()
        if allocation is None:
            raise ValueError(
                f"no round left: {self.ledger.spent_rollouts} of "
                f"{self.ledger.total_rollouts} rollouts are spent"
            )
        rows = collate_fn([self.train_dataset[int(prompt)] for prompt in allocation.prompt_ids])
        uids = [str(uuid.uuid4()) for _ in allocation.prompt_ids]
        rows["uid"] = np.array(uids, dtype=object)
        rows["__rollout_n__"] = np.array([int(n) for n in allocation.rollouts], dtype=object)
        self._groups = {uid: position for position, uid in enumerate(uids)}
        batch = tu.get_tensordict(rows)
        tu.assign_non_tensor_data(batch, "global_steps", self.global_steps)
        return batch

    def _step_once(self, metrics: dict, timing_raw: dict, sample_batch_size: int) -> Any:
        """A step waits for the round's prompts, however many they are."""
        return super()._step_once(metrics, timing_raw, len(self._groups))

    def _compute_advantage(self, batch: Any, metrics: dict) -> Any:
        batch = super()._compute_advantage(batch, metrics)
        self._finish_round(batch, metrics)
        return batch

    def _finish_round(self, batch: Any, metrics: dict) -> None:
        """Evidence to the scheduler: the score of every trajectory that came back; what did not
        come back is missing."""
        allocation = self._planned
        assert allocation is not None
        real = [
            key
            for key, tag in zip(batch.keys, batch.tags, strict=True)
            if not tag.get("is_padding", False)
        ]
        stored: Any = tq.kv_batch_get(
            keys=real, partition_id=batch.partition_id, select_fields=["rm_scores"]
        )
        starts = np.concatenate(([0], np.cumsum(allocation.rollouts)[:-1]))
        rewards = np.full(allocation.total_rollouts, np.nan, dtype=np.float32)
        last = np.full(allocation.total_rollouts, -1)
        for key, score in zip(real, stored["rm_scores"].unbind(), strict=True):
            prompt, session, output = key.rsplit("_", 2)  # verl's key of a trajectory
            rollout = starts[self._groups[prompt]] + int(session)
            # an agent loop with several outputs is scored by its last
            if int(output) > last[rollout]:
                rewards[rollout], last[rollout] = float(score.sum()), int(output)
        result = score_round(allocation, rewards, self.scheduler.value.shape[0], self.rule)
        close_round(self.scheduler, result)
        self.ledger.book(allocation.total_rollouts)
        self.last_round, self._planned, self._groups = result, None, {}
        metrics.update(
            {
                **self.ledger.metrics(),
                "cero/groups": len(allocation.rollouts),
                "cero/rollouts_mean": float(allocation.rollouts.mean()),
                "cero/rollouts_max": int(allocation.rollouts.max()),
                "cero/effective_group_rate": float(result.live.mean()),
                "cero/missing_rewards": int(np.isnan(rewards).sum()),
                **self.scheduler.metrics(),
            }
        )

    def on_step_end(self) -> None:
        super().on_step_end()
        if self.plan_round() is None and self.global_steps < self.total_training_steps:
            # the budget is spent early: fit() ends here
            self.total_training_steps = self.global_steps
            if (
                self.config.trainer.save_freq > 0
                and self.global_steps % self.config.trainer.save_freq
            ):
                self._save_checkpoint()

    # --- checkpoints

    def _state_path(self, step: int) -> Path:
        trainer = self.config.trainer
        if trainer.resume_mode == "resume_path" and str(trainer.resume_from_path or "").endswith(
            f"global_step_{step}"
        ):
            return Path(trainer.resume_from_path) / STATE_FILE
        return Path(trainer.default_local_dir) / f"global_step_{step}" / STATE_FILE

    def _save_checkpoint(self) -> None:
        path = (
            Path(self.config.trainer.default_local_dir)
            / f"global_step_{self.global_steps}"
            / STATE_FILE
        )
        # before verl marks the folder as complete
        save_state(path, self.scheduler, self.ledger, self._pool)
        super()._save_checkpoint()

    def _load_checkpoint(self) -> None:
        super()._load_checkpoint()
        if self.global_steps > 0:
            load_state(self._state_path(self.global_steps), self.scheduler, self.ledger, self._pool)
            self._planned = None


def _check(config: Any) -> None:
    estimators = [f"{_PREFIX}{norm}" for norm in _NORMS]
    if config.algorithm.adv_estimator not in estimators:
        raise ValueError(
            f"algorithm.adv_estimator: got {config.algorithm.adv_estimator!r}, wanted one "
            f"of {', '.join(estimators)}: groups are ragged"
        )
    filtered = config.algorithm.get("filter_groups", None)
    if filtered is not None and filtered.get("enable", False):
        raise ValueError(
            "algorithm.filter_groups.enable: must be false; refilled prompts would be "
            "generated outside the budget"
        )
    if config.trainer.v1.sampler.get("sync_refill_failed_groups", False):
        raise ValueError(
            "trainer.v1.sampler.sync_refill_failed_groups: must be false; refills would be "
            "outside the budget"
        )
