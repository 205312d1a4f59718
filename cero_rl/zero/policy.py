"""The policy under ZeRO, and its frozen reference: models in DeepSpeed engines.

In: a Config and the process group. Out: `Policy`, the learner, and what `build_reference` makes of
the same start model. Models are loaded, and refused, in models/load.py.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from cero_rl.config import Config
from cero_rl.distributed.block import Block
from cero_rl.distributed.group import Group
from cero_rl.models.logprob import PolicyModule, forward_micro
from cero_rl.models.lora import Adapter, add_adapter
from cero_rl.models.weights import Source, buffers_of
from cero_rl.zero.deepspeed_config import policy_config, reference_config
from cero_rl.zero.offload import HostStates, states_wait
from cero_rl.zero.sharding import load_for_engine


@contextmanager
def _quiet_deepspeed() -> Iterator[None]:
    logger = logging.getLogger("DeepSpeed")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@dataclass(frozen=True)
class StepOutcome:
    """applied: False when a gradient was not finite on any rank, and all ranks skipped together."""

    applied: bool
    grad_norm: float


class Policy:
    """The learner: a causal language model under DeepSpeed ZeRO, one optimizer, one
    learning-rate function."""

    def __init__(self, config: Config, group: Group, *, universal: bool = False) -> None:
        """`universal`: load_checkpoint will be given a universal checkpoint."""
        import deepspeed

        self._config = config
        on_gpu = group.device.type == "cuda"
        settings = policy_config(config, group.world_size, on_gpu=on_gpu, universal=universal)
        with _quiet_deepspeed():
            causal_lm = load_for_engine(config, group, settings)
        if config.model.gradient_checkpointing:
            causal_lm.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )
        self.adapter: Adapter | None = add_adapter(causal_lm, config) if config.lora.rank else None
        slices = config.zero.sequence_parallel
        self.block = Block.of(group, slices, config.collective_timeout_seconds)
        temperature = config.rollout.temperature
        self._module = PolicyModule(causal_lm, temperature=temperature, block=self.block)
        with _quiet_deepspeed():
            # DeepSpeed's annotation says Module
            parameters: Any = [p for p in self._module.parameters() if p.requires_grad]
            engine, *_ = deepspeed.initialize(
                model=self._module, model_parameters=parameters, config=settings
            )
        self.engine: Any = engine
        waits = states_wait(config, group.device)
        self._states = HostStates(engine, pinned=True) if waits else None
        self._norm_of_plain_step: float | None = None
        if config.zero.stage == 0 and config.model.dtype == "float32":
            self.engine.clip_fp32_gradients = self._clip_plain_gradients
        self.causal_lm = causal_lm

    def rest(self) -> None:
        """The sampler's turn: what it does not need of this policy may leave the GPU."""
        if self._states is not None:
            self._states.leave()

    def work(self) -> None:
        """The learner's turn."""
        if self._states is not None:
            self._states.come_back()

    def logps(self, micro: Any, *, with_entropy: bool) -> tuple[Tensor, Tensor]:
        """(log-probs f32[T], entropy f32[T]) of one packed micro-batch."""
        return forward_micro(self.engine, micro, with_entropy=with_entropy)

    def backward(self, loss: Tensor) -> None:
        self.engine.backward(loss, scale_wrt_gas=False)

    def step(self, learning_rate: float) -> StepOutcome:
        for parameters in self.engine.optimizer.param_groups:
            parameters["lr"] = learning_rate
        with _quiet_deepspeed():
            self.engine.step()
        norm = self._norm_of_plain_step
        if norm is not None:
            return StepOutcome(applied=math.isfinite(norm), grad_norm=norm)
        return StepOutcome(
            applied=bool(self.engine.was_step_applied()),
            grad_norm=float(self.engine.get_global_grad_norm()),
        )

    def _clip_plain_gradients(self) -> None:
        """In the place of DeepSpeed's own, which at stage 0 in float32 looks at no gradient and
        tells no norm. Gradients are all ranks' by now; without them the optimizer steps nowhere."""
        parameters = [p for p in self._module.parameters() if p.grad is not None]
        limit = self._config.optimizer.max_grad_norm
        self._norm_of_plain_step = float(nn.utils.clip_grad_norm_(parameters, limit))
        if not math.isfinite(self._norm_of_plain_step):
            for parameter in parameters:
                parameter.grad = None

    def train(self, mode: bool) -> None:
        self.engine.train(mode)

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """(name, trained parameter); shared parameters once, in a fixed order."""
        return [(name, p) for name, p in self.causal_lm.named_parameters() if p.requires_grad]

    def weights(self) -> list[Source]:
        """All weights of the Hugging Face model, under its names, with a LoRA adapter merged in;
        its persistent buffers too."""
        parameters = (
            self.adapter.merged()
            if self.adapter
            else [Source.of(*named) for named in self.causal_lm.named_parameters()]
        )
        return [*parameters, *buffers_of(self.causal_lm)]

    def identity(self, group: Group) -> dict[str, Any]:
        """What a checkpoint of this policy is about and does not hold: with LoRA the frozen
        base, and how the adapter is to be read."""
        if self.adapter is None:
            return {}
        return {
            "base_weights": self.adapter.base_checksum(group),
            "adapter": self.adapter.file_config(self._config.model.path),
        }

    def sampled_weights(self) -> list[Source]:
        """What the sampler is given after each update."""
        return (
            self.adapter.weights()
            if self.adapter and self._config.lora.adapter_only
            else self.weights()
        )


class _Base:
    """The frozen base of a policy with a LoRA adapter, called as an engine is."""

    def __init__(self, engine: Any, adapter: Adapter) -> None:
        self._engine, self._adapter = engine, adapter

    def __call__(self, *inputs: Any) -> Any:
        with self._adapter.off():
            return self._engine(*inputs)


def build_reference(config: Config, group: Group, policy: Policy) -> Any:
    """The start model, frozen: the base under the policy's LoRA adapter, else a copy under the
    same sharding."""
    import deepspeed

    if policy.adapter is not None:
        return _Base(policy.engine, policy.adapter)
    on_gpu = group.device.type == "cuda"
    settings = reference_config(config, group.world_size, on_gpu=on_gpu)
    with _quiet_deepspeed():
        causal_lm = load_for_engine(config, group, settings)
    causal_lm.requires_grad_(False)
    temperature = config.rollout.temperature
    module = PolicyModule(causal_lm, temperature=temperature, block=policy.block).eval()
    with _quiet_deepspeed():
        engine, *_ = deepspeed.initialize(model=module, config=settings)
    engine.eval()
    return engine
