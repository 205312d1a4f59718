"""Can this trainer train a model of this architecture? Tried, not looked up: a small random model
of the same configuration class goes through the learner and the sampler, and must be worth to both
what its own code says.

In: the start model's configuration. Out: nothing, or a ConfigError with the reason. It runs on the
CPU in a fraction of a second, before anything is loaded or written, so that an architecture that
nobody has heard of is refused as surely as one that is known not to work. The small model keeps
what changes the computation (kinds of layers, kinds of attention, head sizes, rope, experts,
scales), and makes what only long sequences or large numbers would show (windows, chunks, caps)
small enough to show here.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cero_rl.errors import ConfigError, first_line
from cero_rl.models.attention import PACKED, choose_attention, sampler_attention
from cero_rl.models.logprob import PolicyModule
from cero_rl.rollout.engines.transformers import TransformersEngine
from cero_rl.rollout.protocol import RolloutRequest
from cero_rl.types import RolloutGroup

_VOCABULARY = 64
_HEADS = 4
_WIDTH = 32  # of feed-forward layers
_WINDOW = 5  # tokens; the sequences here are longer
_CAP = 1.0
_PROMPTS = (4, 11, 7)  # tokens
_RESPONSE = 8
_SHARED = (2, (3, 1, 2))  # tokens of a prompt and its responses, within the window
_BOUND = 1e-3  # nats, in float32; what is right differs by 1e-5
_SEED = 0
_LARGEST = 300_000_000  # parameters of a model that is still tried


def try_architecture(
    path: str,
    config: Any,
    *,
    with_sampler: bool,
    checkpointing: bool = False,
    shared_prefix: bool = False,
) -> None:
    """Raises ConfigError for a model that learner or, `with_sampler`, the transformers sampler
    would compute otherwise than its own code does; `checkpointing`: or that cannot make its
    activations again in the backward pass; `shared_prefix`: or cannot share prompts."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        reason = _reason_against(config, with_sampler, checkpointing, shared_prefix)
    if reason is not None:
        kind = ", ".join(config.architectures or [type(config).__name__])
        raise ConfigError(
            f"model.path: {path!r} is a {config.model_type} ({kind}), which this trainer cannot "
            f"train: {reason}; docs/models.md lists what it can"
        )


def _reason_against(
    config: Any, with_sampler: bool, checkpointing: bool, shared_prefix: bool
) -> str | None:
    try:
        small = small_config(config)
        if reason := _has_state(small):
            return reason
        model = _small_model(small)
        if checkpointing and not model.supports_gradient_checkpointing:
            return "it knows no gradient checkpointing, which model.gradient_checkpointing asks for"
        return (
            _not_causal(model)
            or _learner_differs(model, shared_prefix)
            or (_sampler_differs(model) if with_sampler else None)
        )
    except Exception as error:  # of any library code that an unknown architecture runs
        return f"a small model of this configuration does not run ({_short(error)})"


# --- the small model


def small_config(config: Any) -> Any:
    """The configuration of a model of the same kind, of two layers or one of each kind that the
    model has."""
    small = copy.deepcopy(config)
    layers = config.num_hidden_layers
    per_layer = {
        name: list(value)
        for name, value in vars(config).items()
        if isinstance(value, list | tuple) and len(value) == layers
    }
    kinds: dict[tuple[str, ...], int] = {}
    for index in range(layers):
        kinds.setdefault(tuple(str(value[index]) for value in per_layer.values()), index)
    chosen = sorted(kinds.values())
    chosen += [i for i in range(layers) if i not in chosen][: max(0, 2 - len(chosen))]
    chosen.sort()
    for name, value in per_layer.items():
        setattr(small, name, [value[i] for i in chosen])
    small.num_hidden_layers = len(chosen)
    small.vocab_size = _VOCABULARY
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        if getattr(config, name, None) is not None:
            setattr(small, name, 0)
    for name, value in vars(config).items():
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            continue
        if name in ("sliding_window", "attention_chunk_size"):
            setattr(small, name, min(int(value), _WINDOW))
        elif name.endswith("softcapping"):
            setattr(small, name, min(float(value), _CAP))
        elif name.endswith(("intermediate_size", "ffn_dim", "n_inner")):
            setattr(small, name, min(int(value), _WIDTH))
    return small


def _narrow(small: Any) -> Any:
    """The same with a few heads of the size that they have."""
    narrow = copy.deepcopy(small)
    heads, size = small.num_attention_heads, small.hidden_size // small.num_attention_heads
    shared = getattr(small, "num_key_value_heads", None)
    narrow.num_attention_heads = min(_HEADS, heads)
    narrow.hidden_size = size * narrow.num_attention_heads
    if shared is not None:
        groups = {1: 1, heads: narrow.num_attention_heads}
        narrow.num_key_value_heads = groups.get(shared, min(2, shared))
    return narrow


def _small_model(small: Any) -> Any:
    """A random float32 model far from uniform. The narrow one, unless its sizes depend on one
    another in ways that are not known here."""
    from transformers import AutoModelForCausalLM

    errors: list[Exception] = []
    for config in (_narrow(small), small):
        make = partial(
            AutoModelForCausalLM.from_config,
            config,
            attn_implementation=sampler_attention(config),
            dtype=torch.float32,
            trust_remote_code=False,
        )
        try:
            with torch.device("meta"):
                parameters = sum(p.numel() for p in make().parameters())
            if parameters > _LARGEST:
                raise ValueError(f"the smallest that can be made has {parameters:,} parameters")
            torch.manual_seed(_SEED)
            model = make()
            with torch.no_grad():
                for parameter in model.parameters():
                    scale = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.1
                    parameter.add_(torch.randn_like(parameter) * scale)
            _plain_logps(model.eval(), _tokens())
            return model
        except Exception as error:
            errors.append(error)
    raise errors[0]


def _tokens() -> Tensor:
    """A sequence as long as the longest that is tried, i64[m]."""
    made = np.random.default_rng(_SEED).integers(0, _VOCABULARY, max(_PROMPTS) + _RESPONSE)
    return torch.from_numpy(made)


# --- what is compared


def _plain_logps(model: Any, tokens: Tensor) -> Tensor:
    """By the model's own forward pass: log-prob of tokens[1:], f32[m - 1]."""
    with torch.no_grad():
        logits = model(input_ids=tokens[None], use_cache=False).logits[0, :-1]
    every = torch.log_softmax(logits.float(), -1)
    return every.gather(-1, tokens[1:, None]).squeeze(1)


def _packed_logps(policy: PolicyModule, sequences: Sequence[Tensor]) -> Tensor:
    """By the learner, packed: log-probs of all but the first token of each, f32."""
    lengths = [len(tokens) for tokens in sequences]
    positions = torch.cat([torch.arange(n) for n in lengths])
    edges = torch.from_numpy(np.cumsum([0, *lengths]).astype(np.int32))
    wanted = positions > 0
    tokens = torch.cat(list(sequences))
    logp, _ = policy(tokens, positions, edges, wanted, int(wanted.sum()), max(lengths), 1, False)
    return logp[wanted]


def _shared_logps(policy: PolicyModule, prompt: Tensor, responses: Sequence[Tensor]) -> Tensor:
    """By the learner, behind one prompt: log-probs of all responses, f32."""
    segments = [prompt, *responses]
    starts = [0, *(len(prompt) for _ in responses)]
    positions = torch.cat([torch.arange(p, p + len(x)) for p, x in zip(starts, segments)])
    edges = torch.from_numpy(np.cumsum([0, *map(len, segments)]).astype(np.int32))
    tokens = torch.cat(segments)
    wanted = torch.arange(len(tokens)) >= len(prompt)
    parents = torch.zeros(len(segments), dtype=torch.int32)
    trained = len(tokens) - len(prompt)
    logp, _ = policy(tokens, positions, edges, wanted, trained, len(tokens), 1, False, parents)
    return logp[wanted]


def _not_causal(model: Any) -> str | None:
    tokens = _tokens()
    half = tokens[: len(tokens) // 2]
    if _gap(_plain_logps(model, half), _plain_logps(model, tokens)[: len(half) - 1]) > _BOUND:
        return "what a token is worth depends on the tokens after it, so it is no causal model"
    return None


def _has_state(config: Any) -> str | None:
    """Told by the cache that transformers makes for the configuration, without a model."""
    from transformers.cache_utils import DynamicCache, LinearAttentionCacheLayerMixin

    for layer in DynamicCache(config=config).layers:
        if isinstance(layer, LinearAttentionCacheLayerMixin):
            return (
                f"it has layers that carry a state from token to token ({type(layer).__name__}), "
                "which sequences packed one behind the other would share"
            )
    return None


def _learner_differs(model: Any, shared_prefix: bool) -> str | None:
    once, lengths = _SHARED
    prompt, *responses = _tokens()[: once + sum(lengths)].split([once, *lengths])
    apart = [_plain_logps(model, torch.cat([prompt, r]))[once - 1 :] for r in responses]
    sequences = [_tokens()[-n - _RESPONSE :] for n in _PROMPTS]
    plain = [_plain_logps(model, tokens) for tokens in sequences]
    own = model.config._attn_implementation
    choose_attention("sdpa")
    try:
        model.set_attn_implementation(PACKED)
        policy = PolicyModule(model)
        with torch.no_grad():
            packed = _packed_logps(policy.eval(), sequences)
            one = _packed_logps(policy, sequences[:1])
        if model.supports_gradient_checkpointing:
            how = {"use_reentrant": False}
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=how)
        trained = _packed_logps(policy.train(), sequences).detach()
        if shared_prefix:
            shared = _shared_logps(policy, prompt, responses).detach()
        policy.eval()
    except Exception as error:  # as above
        return f"it does not take packed sequences ({_short(error)})"
    finally:
        model.set_attn_implementation(own)
    if (gap := _gap(one, plain[0])) > _BOUND:
        return (
            "its attention or its head does what the learner does not do (log-probabilities "
            f"differ by {gap:.2g} from its own)"
        )
    if _gap(packed, torch.cat(plain)) > _BOUND:
        return "what a sequence is worth depends on the sequences that are packed beside it"
    if _gap(trained, packed) > _BOUND:
        return "it computes otherwise in training than in sampling (dropout, noise)"
    if shared_prefix and (gap := _gap(shared, torch.cat(apart))) > _BOUND:
        return (
            "what a response is worth behind a prompt that is shared is not what it is worth "
            f"(log-probabilities differ by {gap:.2g}); set learner.shared_prefix: false"
        )
    return None


def _sampler_differs(model: Any) -> str | None:
    tokens = _tokens().numpy()
    requests = [RolloutRequest(i, tokens[:n], 3, stream_key=i) for i, n in enumerate(_PROMPTS)]
    try:
        engine = TransformersEngine(
            model,
            eos_token_ids=range(_VOCABULARY // 8),
            pad_token_id=0,
            decode=lambda ids: "",
            max_response_tokens=_RESPONSE,
            max_batch_tokens=10_000,
            seed=_SEED,
        )
        groups = engine.generate(requests, stream=0, temperature=1.0)
    except Exception as error:  # as above
        return f"the transformers sampler cannot run it ({_short(error)})"
    gap = max(_sampling_gap(model, group) for group in groups)
    if gap > _BOUND:
        return (
            f"the transformers sampler computes other log-probabilities (by {gap:.2g}) than its "
            "own forward pass"
        )
    return None


def _sampling_gap(model: Any, group: RolloutGroup) -> float:
    gaps = []
    for completion in group.completions:
        tokens = np.concatenate([group.prompt_tokens, completion.token_ids])
        plain = _plain_logps(model, torch.from_numpy(tokens))[len(group.prompt_tokens) - 1 :]
        gaps.append(_gap(torch.from_numpy(completion.logp_behavior), plain))
    return max(gaps)


def _gap(one: Tensor, other: Tensor) -> float:
    """The largest |difference|; infinite where one is no number."""
    gap = (one - other).abs()
    return float(gap.max()) if bool(torch.isfinite(gap).all()) else float("inf")


def _short(error: Exception) -> str:
    return first_line(error)[:160]
