"""What forward and backward pass of one micro-batch hold beside the weights, found by running the
learner's own code on tensors that have shapes and no data.

Every storage that an operation makes is counted until it is freed; gradients of parameters are
freed at once, as ZeRO moves them into its bucket. Few layers are run, and the rest follows: a layer
more adds as much as the one before.
"""

from __future__ import annotations

import copy
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cero_rl.errors import ConfigError, first_line
from cero_rl.models.logprob import PolicyModule, head_chunk_tokens
from cero_rl.models.shapes import on_meta

_SHAPES_ONLY = "cero_shapes_only"
_FEW, _MORE = 2, 4  # layers that are run


@dataclass(frozen=True)
class MicroShape:
    """A micro-batch as the plan sees it: sequences of one length."""

    tokens: int
    longest: int
    responses: int  # tokens that go through the head

    @property
    def sequences(self) -> int:
        return max(self.tokens // self.longest, 1)


@dataclass(frozen=True)
class Workspace:
    """Peak bytes of one micro-batch. `forward` is a pass without gradient."""

    backward: int
    forward: int


class _Live(TorchDispatchMode):
    """Bytes of the storages that are alive, of those made while it is active."""

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}
        self._known = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.nonzero.default:  # how many there are is data; here: all asked
            out = torch.empty(args[0].numel(), args[0].dim(), dtype=torch.int64, device="meta")
        else:
            out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: Any) -> None:
        key = storage._cdata
        if key in self._known or key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._freed, key)

    def _freed(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


class _FlashShapes(torch.autograd.Function):
    """What a fused attention keeps and makes: inputs, output, one float32 a head and token."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty((*q.shape[:3], v.shape[-1]), dtype=q.dtype, device=q.device)
        sums = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
        ctx.save_for_backward(q, k, v, out, sums)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, _, _ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **_: Any
) -> tuple[Tensor, None]:
    return _FlashShapes.apply(query, key, value).transpose(1, 2), None  # pyright: ignore


def workspace_of(
    model_config: Any, micro: MicroShape, dtype: str, *, checkpointing: bool
) -> Workspace:
    """Raises ConfigError where the model does not run without data."""
    layers = model_config.num_hidden_layers
    if layers <= _MORE:
        return _run(model_config, layers, micro, dtype, checkpointing)
    few = _run(model_config, _FEW, micro, dtype, checkpointing)
    more = _run(model_config, _MORE, micro, dtype, checkpointing)

    def at(low: int, high: int) -> int:
        return high + (high - low) * (layers - _MORE) // (_MORE - _FEW)

    return Workspace(at(few.backward, more.backward), at(few.forward, more.forward))


def _run(
    model_config: Any, layers: int, micro: MicroShape, dtype: str, checkpointing: bool
) -> Workspace:
    from transformers import AttentionInterface

    AttentionInterface.register(_SHAPES_ONLY, _attention)
    small = copy.deepcopy(model_config)
    small.num_hidden_layers = layers
    if getattr(small, "layer_types", None):
        small.layer_types = small.layer_types[:layers]
    model = on_meta(small, _SHAPES_ONLY, dtype)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    policy = PolicyModule(model)
    policy.train(True)
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(_drop)
    try:
        backward = _peak(policy, micro, learns=True)
        forward = _peak(policy, micro, learns=False)
    except Exception as error:  # whatever an architecture asks of its data
        raise ConfigError(
            f"model.path: a {model_config.model_type} does not run on shapes alone "
            f"({first_line(error)}); its memory can only be measured"
        ) from error
    return Workspace(backward, forward)


def _drop(parameter: Tensor) -> None:
    parameter.grad = None


def _peak(policy: PolicyModule, micro: MicroShape, *, learns: bool) -> int:
    chunks = -(-micro.responses // head_chunk_tokens(policy.causal_lm.config.vocab_size))
    tokens = micro.sequences * micro.longest
    trained = min(micro.responses, tokens)
    live = _Live([*policy.parameters(), *policy.buffers()])
    with torch.device("meta"), torch.set_grad_enabled(learns), live:
        integers = torch.empty(tokens, dtype=torch.int64)
        edges = torch.empty(micro.sequences + 1, dtype=torch.int32)
        mask = torch.empty(tokens, dtype=torch.bool)
        out, _ = policy(integers, integers, edges, mask, trained, micro.longest, chunks, learns)
        if learns:
            out.sum().backward()
    return live.peak
