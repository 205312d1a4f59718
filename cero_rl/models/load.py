"""Loading tokenizers, configurations and weights from a save_pretrained directory or a hub id.
No DeepSpeed.

Raises EngineError with the path and the remedy; nothing here runs code that comes with a
checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from cero_rl.config import Config
from cero_rl.errors import ConfigError, EngineError, first_line
from cero_rl.models.lora import Adapter, add_adapter


def load_tokenizer(path: str) -> Any:
    from transformers import AutoTokenizer

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
    return tokenizer


def load_model_config(path: str) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False)
    except Exception as error:
        raise EngineError(
            f"model.path: no config.json could be read from {path!r} ({first_line(error)})"
        ) from error


def refuse_other_architectures(path: str, model: Any, tokenizer: Any) -> None:
    """Is this configuration a causal language model's, with a row for every token of the
    tokenizer? Raises ConfigError."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    named = (
        f"{path!r} is a {model.model_type} "
        f"({', '.join(model.architectures or ['no architecture named'])})"
    )
    if model.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ConfigError(
            f"model.path: {named}, wanted a causal language model; give a decoder such as "
            "Qwen, Llama or SmolLM"
        )
    if not isinstance(getattr(model, "max_position_embeddings", None), int):
        raise ConfigError(
            f"model.path: {named}, whose config.json states no max_position_embeddings; "
            "give a model that does"
        )
    if (tokens := len(tokenizer)) > model.vocab_size:
        raise ConfigError(
            f"model.path: the tokenizer of {path!r} has {tokens} tokens, the model "
            f"{model.vocab_size} rows of embeddings; "
            "use the tokenizer that the model was trained with"
        )


def load_model(path: str, dtype: str, attention: str) -> Any:
    """The model with all its weights. Raises EngineError: not readable, or not the weights of
    the architecture in config.json."""
    from transformers import AutoModelForCausalLM

    try:
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
        raise EngineError(
            f"model.path: {path!r} could not be loaded ({first_line(error)}){hint}"
        ) from error
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
    return model


def adapter_without_weights(config: Config) -> Adapter:
    """The adapter of config.lora in a model that has shapes and no data. Raises ConfigError
    where config.lora does not fit the model."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        causal_lm = AutoModelForCausalLM.from_config(
            load_model_config(config.model.path), trust_remote_code=False
        )
        return add_adapter(causal_lm, config)
