"""The parity probe inside a TRL run: every k optimizer steps, is what vLLM samples from the policy
that is trained?

    trainer.add_callback(ParityCallback(trainer, every_steps=50))

For any TRL trainer that samples with vLLM, with or without our scheduler. TRL hands the weights
over when it next generates; the probe asks it to do so at once, and then asks the sampler. A gap
ends the run with EngineError, or is logged alone (`stop=False`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from cero_rl.errors import ConfigError, EngineError, tell
from cero_rl.parity import (
    HttpSampler,
    LlmSampler,
    ModelScorer,
    ParityOptions,
    ParityReport,
    check_parity,
)
from cero_rl.parity.samplers import Sampler


class ParityCallback(TrainerCallback):
    """`trainer` gives the sampler (its vLLM engine or server), the weight sync and the temperature.
    Without one, `sampler` is asked and `sync`, if given, is called before. The model must be whole
    on each process: ZeRO-3 and FSDP are refused. Raises ConfigError for what does not fit."""

    def __init__(
        self,
        trainer: Any = None,
        *,
        every_steps: int = 50,
        sampler: Sampler | None = None,
        sync: Callable[[], None] | None = None,
        options: ParityOptions | None = None,
        stop: bool = True,
    ) -> None:
        if every_steps < 1:
            raise ConfigError(f"ParityCallback: every_steps {every_steps}, wanted at least 1")
        if trainer is None and sampler is None:
            raise ConfigError("ParityCallback: neither a trainer nor a sampler; give one of them")
        if sampler is None and getattr(trainer, "vllm_generation", None) is None:
            raise ConfigError(
                "ParityCallback: this trainer samples from the model that it trains; there is "
                "nothing to compare. Set use_vllm=True, or leave the callback out"
            )
        self._trainer: Any = trainer
        self._every, self._stop = every_steps, stop
        self._sampler, self._sync = sampler, sync
        self._own = sampler is None  # the trainer's
        self._options = options
        self.reports: list[tuple[int, ParityReport]] = []  # (optimizer step, what was found)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step % self._every:
            return
        self._hand_over(state)
        sampler = self._sampler or self._of_trainer(state)
        if sampler is None:  # another process asks the server
            return
        model = kwargs["model"]
        _refuse_sharded(model)
        options = self._options or ParityOptions(
            temperature=float(getattr(args, "temperature", None) or 1.0)
        )
        was_training = model.training
        model.eval()
        try:
            scorer = ModelScorer(model, kwargs.get("processing_class"))
            options = replace(options, seed=options.seed + state.global_step)
            report = check_parity(sampler, scorer, options)
        finally:
            model.train(was_training)
        self.reports.append((state.global_step, report))
        if self._trainer is not None:
            self._trainer.log({"parity/gap": report.gap, "parity/bound": report.bound})
        if self._stop:
            report.raise_if_wrong()
        elif not report.same:
            found = "; ".join(finding.text for finding in report.findings)
            tell(f"parity: step {state.global_step}: {found}")

    def _hand_over(self, state: TrainerState) -> None:
        """As the trainer would before it next generates."""
        if self._sync is not None:
            self._sync()
        elif self._own and self._trainer._last_loaded_step != state.global_step:
            self._trainer.vllm_generation.sync_weights()
            self._trainer._last_loaded_step = state.global_step

    def _of_trainer(self, state: TrainerState) -> Sampler | None:
        """The trainer's own; its server is asked by one process."""
        generation = self._trainer.vllm_generation
        if generation.mode == "colocate":
            return LlmSampler(generation.llm)
        if not state.is_world_process_zero:
            return None
        self._sampler = HttpSampler(generation.vllm_client.base_url)
        return self._sampler


def _refuse_sharded(model: torch.nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if hasattr(parameter, "ds_id") or hasattr(parameter, "_local_tensor"):
            raise EngineError(
                f"ParityCallback: {name} is a shard (ZeRO-3 or FSDP); the probe needs a model that "
                "is whole on each process: save it, and ask with cero-rl parity"
            )
