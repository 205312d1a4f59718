"""Start models of the testbeds: character-level Qwen3 of two sizes, a supervised warm start from a
seed, and answers sampled from them."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from digits import Item
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from cero_rl.rewards.base import RewardItem
from cero_rl.rewards.verifiers import exact
from cero_rl.rollout.engines.transformers import TransformersEngine
from cero_rl.rollout.protocol import RolloutRequest

PAD, EOS = 0, 1
CONTEXT = 128


@dataclass(frozen=True)
class Size:
    width: int
    layers: int
    heads: int  # of 32 dimensions; half as many key-value heads


SIZES = {"1m": Size(128, 4, 4), "4m": Size(256, 6, 8)}


@dataclass(frozen=True)
class Vocabulary:
    """Text <-> token ids; a token is a character, or one of the longer `tokens`."""

    tokens: Sequence[str]

    def ids(self) -> dict[str, int]:
        return {token: index for index, token in enumerate(["<pad>", "<eos>", *self.tokens])}

    def pattern(self) -> str:
        longer = [re.escape(token) for token in self.tokens if len(token) > 1]
        return "|".join([*longer, "."])

    def encoder(self) -> Callable[[str], list[int]]:
        ids, pattern = self.ids(), re.compile(self.pattern())
        return lambda text: [ids[token] for token in pattern.findall(text)]

    def tokenizer(self) -> PreTrainedTokenizerFast:
        tokenizer = Tokenizer(models.WordLevel(self.ids(), unk_token="<pad>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(self.pattern()), "isolated")
        tokenizer.decoder = decoders.Fuse()
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            eos_token="<eos>",
            pad_token="<pad>",
            model_max_length=CONTEXT,
        )


def make_model(size: Size, vocabulary: int, seed: int, context: int = CONTEXT) -> Qwen3ForCausalLM:
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=size.width,
        intermediate_size=3 * size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads // 2,
        head_dim=32,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        eos_token_id=EOS,
        pad_token_id=PAD,
        bos_token_id=None,
        use_cache=True,
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config.eos_token_id = EOS
    model.generation_config.pad_token_id = PAD
    return model


Batch = tuple[torch.Tensor, torch.Tensor]  # tokens and labels, [rows, width]


def fit(
    model: Qwen3ForCausalLM,
    draw: Callable[[], Batch],
    *,
    steps: int,
    rate: float,
    decay: float,
    say_every: int,
) -> None:
    """Next-token cross-entropy on the batches that `draw` makes, labels of -100 left out; 20 steps
    of warm-up, and a linear decay to 0 over the last 1 / `decay` of the steps."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
    started = time.monotonic()
    model.train()
    for step in range(steps):
        tokens, labels = draw()
        for parameters in optimizer.param_groups:
            parameters["lr"] = rate * min((step + 1) / 20, (steps - step) / steps * decay, 1.0)
        logits = model(tokens).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % say_every == say_every - 1 or step + 1 == steps:
            print(
                f"warm start {step + 1}/{steps}  loss {loss.item():.3f}  "
                f"{time.monotonic() - started:.0f} s",
                flush=True,
            )
    model.eval()


def batch_of(rows: Sequence[tuple[Sequence[int], Sequence[int]]], width: int) -> Batch:
    """Token ids of prompts and responses, each ended by <eos>, padded to `width`; prompts have no
    label."""
    tokens = torch.full((len(rows), width), PAD)
    labels = torch.full((len(rows), width), -100)
    for row, (prompt, response) in enumerate(rows):
        ids = torch.tensor([*prompt, *response, EOS])
        tokens[row, : len(ids)] = ids
        labels[row, len(prompt) : len(ids)] = ids[len(prompt) :]
    return tokens, labels


def warm_start(
    model: Qwen3ForCausalLM,
    practice: Callable[[random.Random], tuple[list[int], list[int]]],
    *,
    steps: int,
    batch: int,
    rate: float,
    seed: int,
) -> None:
    """`fit` on what `practice` draws, the token ids of a prompt and of its response; the rate falls
    in the second half."""
    rng = random.Random(f"warm-start-{seed}")

    def draw() -> Batch:
        rows = [practice(rng) for _ in range(batch)]
        return batch_of(rows, max(len(prompt) + len(response) + 1 for prompt, response in rows))

    fit(model, draw, steps=steps, rate=rate, decay=2.0, say_every=50)


class Sampler:
    """Responses at temperature 1; the draws of an item are a function of (seed, stream, index)."""

    def __init__(
        self, model: Qwen3ForCausalLM, vocabulary: Vocabulary, max_response_tokens: int, seed: int
    ) -> None:
        self._encode = vocabulary.encoder()
        tokenizer = vocabulary.tokenizer()
        self._engine = TransformersEngine(
            model,
            eos_token_ids=[EOS],
            pad_token_id=PAD,
            decode=lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=True)),
            max_response_tokens=max_response_tokens,
            max_batch_tokens=32768,
            seed=seed,
        )

    def responses(
        self, items: Mapping[int, Item], samples: int, *, stream: int, first_draw: int = 0
    ) -> dict[int, list[str]]:
        """`samples` texts an item, under its index; draws are numbered from `first_draw`."""
        requests = [
            RolloutRequest(index, np.array(self._encode(item.prompt)), samples, index, first_draw)
            for index, item in items.items()
        ]
        groups = self._engine.generate(requests, stream=stream, temperature=1.0)
        return {g.prompt_id: [completion.text for completion in g.completions] for g in groups}


def right(texts: Sequence[str], key: str) -> int:
    """How many of the responses the verifier `exact` takes for `key`."""
    return sum(exact(RewardItem("", text, key, "", {})) == 1.0 for text in texts)
