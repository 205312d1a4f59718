"""What the wanted policy says of tokens: a model of transformers, or any function that scores.

One sequence at a time, as plain transformers computes it: this is the yardstick, not a fast path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from cero_rl.errors import ConfigError, EngineError, first_line
from cero_rl.files.lora_adapter import base_checksum, bit_sum
from cero_rl.models.load import load_model, load_tokenizer
from cero_rl.parity.judge import Scored

Ids = npt.NDArray[np.int64]


class Scorer(Protocol):
    """A policy. `score` answers for one prompt i64[m] and one response i64[n], once for each of the
    temperatures."""

    def score(self, prompt: Ids, response: Ids, temperatures: Sequence[float]) -> list[Scored]: ...


class CallableScorer:
    """A function of (prompt ids, response ids, temperature) that gives a log-probability for every
    response token. Raises EngineError where it gives another number of them."""

    def __init__(self, function: Callable[[Ids, Ids, float], Sequence[float]]) -> None:
        self._function = function

    def score(self, prompt: Ids, response: Ids, temperatures: Sequence[float]) -> list[Scored]:
        rows = []
        for temperature in temperatures:
            logps = np.asarray(self._function(prompt, response, temperature), np.float64)
            if logps.shape != response.shape:
                raise EngineError(
                    f"parity: the scoring function gave shape {logps.shape} for {response.size} "
                    "tokens; wanted one log-probability a response token"
                )
            rows.append(Scored(logps))
        return rows


class ModelScorer:
    """A causal language model of transformers. `tokenizer` may be None: then text is not
    compared."""

    def __init__(self, model: Any, tokenizer: Any = None, *, dtype: str | None = None) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.dtype = dtype or str(next(model.parameters()).dtype).removeprefix("torch.")

    @classmethod
    def load(
        cls,
        path: str,
        *,
        dtype: str | None = None,
        device: str = "cpu",
        adapter: str | None = None,
        tokenizer: bool = True,
    ) -> ModelScorer:
        """From a save_pretrained directory, in `dtype` (default: that of its config.json), with a
        LoRA adapter of peft where one is given. Raises EngineError."""
        from cero_rl.models.load import load_model_config

        if dtype is None:
            told = getattr(load_model_config(path), "dtype", None)
            dtype = str(told).removeprefix("torch.") if told is not None else "float32"
        model = load_model(path, dtype, "sdpa").to(device)
        if adapter is not None:
            model = _with_adapter(model, adapter)
        return cls(model.eval(), load_tokenizer(path) if tokenizer else None, dtype=dtype)

    @property
    def vocabulary(self) -> int:
        """Rows of the output head."""
        return int(self.model.get_output_embeddings().weight.shape[0])

    @property
    def positions(self) -> int:
        return int(getattr(self.model.config, "max_position_embeddings", None) or 2**31)

    def checksum(self) -> str | None:
        """Of all weights in this dtype, tied ones once, whatever their order and how they are
        fused; None under an adapter, whose matrices travel apart from their base."""
        if hasattr(self.model, "disable_adapter"):
            return None
        return base_checksum(sum(bit_sum(p.data) for p in self.model.parameters()))

    @torch.no_grad()
    def score(self, prompt: Ids, response: Ids, temperatures: Sequence[float]) -> list[Scored]:
        ids = torch.from_numpy(np.concatenate([prompt, response])).to(self.model.device)
        rows = self.model(ids[None], use_cache=False).logits[0, len(prompt) - 1 : -1].float()
        wanted = ids[len(prompt) :, None]
        scored = []
        for temperature in temperatures:
            every = torch.log_softmax(rows / temperature, -1).double()
            chances = every.exp()
            entropy = torch.special.entr(chances).sum(-1)
            square = torch.where(chances > 0, chances * every**2, 0.0).sum(-1)
            scored.append(
                Scored(
                    every.gather(-1, wanted).squeeze(1).cpu().numpy(),
                    entropy.cpu().numpy(),
                    (square - entropy**2).clamp_min(0.0).cpu().numpy(),
                )
            )
        return scored

    @contextmanager
    def in_float32(self) -> Iterator[None]:
        """The same weights, computed with in float32; needs room for that copy. Buffers stay: those
        of positions are float32 in every model."""
        whole = list(self.model.parameters())
        try:
            for parameter in whole:
                parameter.data = parameter.data.float()
            yield
        finally:
            for parameter in whole:
                parameter.data = parameter.data.to(getattr(torch, self.dtype))

    @contextmanager
    def with_head_of(self, other: ModelScorer) -> Iterator[None]:
        own = self.model.get_output_embeddings()
        self.model.set_output_embeddings(other.model.get_output_embeddings())
        try:
            yield
        finally:
            self.model.set_output_embeddings(own)

    @contextmanager
    def without_adapter(self) -> Iterator[None]:
        with self.model.disable_adapter():
            yield


def _with_adapter(model: Any, adapter: str) -> Any:
    try:
        from peft import PeftModel
    except ImportError as error:
        raise ConfigError(
            f"parity: --adapter {adapter!r} needs peft ({error}); pip install 'cero_rl[lora]'"
        ) from None
    try:
        return PeftModel.from_pretrained(model, adapter, local_files_only=True)
    except Exception as error:  # peft raises a dozen unrelated types
        raise EngineError(
            f"parity: no LoRA adapter could be loaded from {adapter!r} ({first_line(error)}); "
            "give a directory with adapter_config.json and adapter_model.safetensors"
        ) from error
