"""Loading tokenizers, configurations and weights from a save_pretrained directory or a hub id.
No DeepSpeed.

Raises EngineError with the path and the remedy; nothing here runs code that comes with a
checkpoint."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cero_rl.config import Config
from cero_rl.errors import ConfigError, EngineError, first_line
from cero_rl.files.lora_adapter import CONFIG_FILE
from cero_rl.files.plain import refuse_links_out
from cero_rl.models.lora import Adapter, add_adapter
from cero_rl.models.streaming import Handle, each_weight

# how the names of classes end that predict the next token
_HEADS = ("ForCausalLM", "LMHeadModel", "LMHead")
_ROPE_OF_THE_CALL = ("longrope", "dynamic")


def _refuse_pointers(path: str) -> None:
    """transformers follows links, and an adapter_config.json to the model it names: neither may
    lead out of a model directory."""
    folder = Path(path)
    if not folder.is_dir():
        return
    refuse_links_out(folder, EngineError)
    if (folder / CONFIG_FILE).exists():
        raise EngineError(
            f"model.path: {path!r} holds a LoRA adapter ({CONFIG_FILE}), which is no model of its "
            "own; merge it first: tools/convert.py merge-lora"
        )


def load_tokenizer(path: str) -> Any:
    from transformers import AutoTokenizer

    _refuse_pointers(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    # transformers and its libraries raise a dozen unrelated types for a bad file
    except Exception as error:
        raise EngineError(
            f"model.path: no tokenizer could be loaded from {path!r} ({first_line(error)})"
        ) from error
    if tokenizer.eos_token_id is None:
        raise EngineError(
            f"model.path: the tokenizer of {path!r} has no end-of-sequence token; set "
            "eos_token in its tokenizer_config.json"
        )
    return without_loading_notes(tokenizer)


def without_loading_notes(tokenizer: Any) -> Any:
    """What is saved must not say how this process came to it: the library writes down whether it
    was offline."""
    for note in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(note, None)
    return tokenizer


def load_model_config(path: str) -> Any:
    from transformers import AutoConfig

    _refuse_pointers(path)
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False)
    except Exception as error:
        raise EngineError(
            f"model.path: no config.json could be read from {path!r} ({first_line(error)})"
        ) from error


def refuse_other_architectures(path: str, model: Any, tokenizer: Any) -> None:
    """Is this configuration a causal language model's, of float weights, with a row for every token
    of the tokenizer? Raises ConfigError. How such a model computes is tried by `trial.py`."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    named = _named(path, model)
    if model.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ConfigError(
            f"model.path: {named}, wanted a causal language model; give a decoder such as "
            "Qwen, Llama or SmolLM"
        )
    if model.get_text_config() is not model or model.is_encoder_decoder:
        raise ConfigError(
            f"model.path: {named}, of which a language model is only a part; save that part as a "
            "model of its own, or give a decoder such as Qwen, Llama or SmolLM"
        )
    mapping: Any = MODEL_FOR_CAUSAL_LM_MAPPING
    own = mapping[type(model)].__name__
    if model.architectures and not any(
        name == own or name.endswith(_HEADS) for name in model.architectures
    ):
        raise ConfigError(
            f"model.path: {named}, which has no head that predicts the next token, wanted a "
            f"{own}; give the language model that it was made from"
        )
    if getattr(model, "quantization_config", None):
        raise ConfigError(
            f"model.path: {named} with quantised weights (quantization_config), which cannot be "
            "trained; dequantise it first, or give the float model that it was made from"
        )
    if (tokens := len(tokenizer)) > model.vocab_size:
        raise ConfigError(
            f"model.path: the tokenizer of {path!r} has {tokens} tokens, the model "
            f"{model.vocab_size} rows of embeddings; "
            "use the tokenizer that the model was trained with"
        )


def usable_positions(path: str, model: Any) -> tuple[int, str]:
    """(the longest sequence that a model of this configuration can be trained on, in tokens; why
    that is not all of its positions, or nothing). Raises ConfigError where there is none.

    With rope types longrope and dynamic the factors of a sequence depend on the longest of the
    call: what it is worth would depend on its micro-batch, and on the step at which the sampler's
    cache was filled. Up to the original length the factors are the same for all.
    """
    longest = getattr(model, "max_position_embeddings", None)
    if not isinstance(longest, int):
        raise ConfigError(
            f"model.path: {_named(path, model)}, whose config.json states no "
            "max_position_embeddings; give a model that does"
        )
    ropes = getattr(model, "rope_parameters", None) or {}
    by_layer = [rope for rope in ropes.values() if isinstance(rope, dict)]
    for rope in by_layer or [ropes]:
        kind, original = rope.get("rope_type"), rope.get("original_max_position_embeddings")
        if kind in _ROPE_OF_THE_CALL and isinstance(original, int) and original < longest:
            return original, f" before its {kind} factors change (original_max_position_embeddings)"
    return longest, ""


def _named(path: str, model: Any) -> str:
    kinds = ", ".join(model.architectures or ["no architecture named"])
    return f"{path!r} is a {model.model_type} ({kinds})"


def load_model(path: str, dtype: str, attention: str, *, handle: Handle | None = None) -> Any:
    """The model with all its weights. Raises EngineError: not readable, or not the weights of
    the architecture in config.json.

    `handle` is called with each weight as soon as it is read, and may shard it: then the model is
    never whole.
    """
    from transformers import AutoModelForCausalLM

    _refuse_pointers(path)
    broken: list[nn.Parameter | Tensor] = []

    def take(parameter: nn.Parameter) -> None:
        if not _is_finite(parameter):
            broken.append(parameter)
        if handle is not None:
            handle(parameter)

    one_by_one = nullcontext()
    if handle is not None:
        config = load_model_config(path)
        rows = config.vocab_size if config.tie_word_embeddings else None
        one_by_one = each_weight(take, tied_rows=rows)
    try:
        with one_by_one:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                path,
                dtype=getattr(torch, dtype),
                attn_implementation=attention,
                trust_remote_code=False,
                output_loading_info=True,
            )
        model, info = loaded
    except Exception as error:
        hint = (
            ""
            if Path(path).exists()
            else "; it is no local directory, and a hub id needs network access"
        )
        words = first_line(error)
        if "Weights only load failed" in str(error):  # what follows says how to trust the file
            words = "its weights are a pickle that holds more than tensors, refused"
        raise EngineError(f"model.path: {path!r} could not be loaded ({words}){hint}") from error
    for problem, names in (
        ("lacks {} weights that its config.json asks for", info["missing_keys"]),
        ("holds {} weights that its config.json has no place for", info["unexpected_keys"]),
    ):
        # transformers would fill what is missing with random numbers, and leave out what has no
        # place
        if names:
            shown = ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
            raise EngineError(
                f"model.path: {path!r} {problem.format(len(names))} ({shown}); "
                "config.json and weights belong to different models, or a file is missing"
            )
    for parameter in model.parameters():
        take(parameter)  # what was taken before is a shard by now, or what it was
    broken += [buffer for buffer in model.buffers() if not _is_finite(buffer)]
    _refuse_broken(path, model, {id(tensor) for tensor in broken})
    return model


def _is_finite(weight: Tensor) -> bool:
    # one pass without a copy; the sum of what is finite is finite in float32
    return not weight.is_floating_point() or bool(weight.sum(dtype=torch.float32).isfinite())


def _refuse_broken(path: str, model: Any, broken: set[int]) -> None:
    named = [*model.named_parameters(), *model.named_buffers()]
    names = [name for name, tensor in named if id(tensor) in broken]
    if names:
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        raise EngineError(
            f"model.path: {path!r} holds {len(names)} weights that are not finite ({shown}); "
            "the file is damaged, or was saved by a training that had diverged"
        )


def adapter_without_weights(config: Config) -> Adapter:
    """The adapter of config.lora in a model that has shapes and no data. Raises ConfigError
    where config.lora does not fit the model."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        causal_lm = AutoModelForCausalLM.from_config(
            load_model_config(config.model.path), trust_remote_code=False
        )
        return add_adapter(causal_lm, config)
