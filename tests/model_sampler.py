"""A sampler of transformers in this process, for tests of the probe without vLLM: it draws from its
model, token by token."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from cero_rl.parity import Answer
from cero_rl.parity.samplers import Facts, Ids


class ModelSampler:
    name = "the model"

    def __init__(self, model: Any, *, top_k: int | None = None, raw: bool = False) -> None:
        self.model = model
        self.top_k, self.raw = top_k, raw

    @torch.no_grad()
    def sample(
        self,
        prompt: Ids,
        *,
        answers: int,
        tokens: int,
        temperature: float,
        seed: int,
        uncached: bool = False,
    ) -> list[Answer]:
        generator = torch.Generator().manual_seed(seed)
        ids, reported = torch.from_numpy(prompt).repeat(answers, 1), []
        for _ in range(tokens):
            logits = self.model(ids).logits[:, -1].float()
            logp = torch.log_softmax(logits / temperature, -1)
            chances = logp.exp()
            if self.top_k is not None:
                least = chances.topk(self.top_k).values[:, -1:]
                chances = torch.where(chances < least, 0.0, chances)
            drawn = torch.multinomial(chances, 1, generator=generator)
            told = torch.log_softmax(logits, -1) if self.raw else logp
            reported.append(told.gather(1, drawn))
            ids = torch.cat([ids, drawn], 1)
        logps = torch.cat(reported, 1).numpy()
        return [
            Answer(row[prompt.size :].numpy().astype(np.int64), logp)
            for row, logp in zip(ids, logps)
        ]

    def encode(self, text: str) -> Ids | None:
        return None

    def facts(self) -> Facts:
        return Facts()
