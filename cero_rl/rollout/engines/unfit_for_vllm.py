"""Which models the pinned vLLM 0.32 does not sample as the learner trains them, told from the
configuration before anything is written. Does not import vllm.

Found by `make test-architectures`. What is not in the list is proven by the parity probe of the
first weight sync, as with every engine.
"""

from __future__ import annotations

from typing import Any

from cero_rl.errors import ConfigError
from cero_rl.models.hub_names import HubNames

_REMEDY = "set rollout.engine: transformers"
_LOADS_PAST_THE_RELOAD = "its loader goes past the reload of weights, so that an update is lost"
UNFIT = {
    "gpt_oss": _LOADS_PAST_THE_RELOAD,
    "deepseek_v3": "after a reload of its weights it computes other log-probabilities",
    "gpt_neox": "it computes other log-probabilities than transformers from the same file",
}


def refuse_unfit_for_vllm(path: str, model: Any, longest_tokens: int) -> None:
    """Raises ConfigError with the reason. `longest_tokens` are prompt and response together."""
    if (reason := _reason_against(model, longest_tokens)) is not None:
        raise ConfigError(
            f"rollout.engine: vllm 0.32 does not sample {path!r}, a {model.model_type}, as it is "
            f"trained ({reason}); {_REMEDY}"
        )


def _reason_against(model: Any, longest_tokens: int) -> str | None:
    kind, window = model.model_type, getattr(model, "sliding_window", None)
    if kind in UNFIT:
        return UNFIT[kind]
    if kind == "cohere2" and window is not None and longest_tokens > window:
        return f"it sees a token more than the window of {window}"
    if (
        kind == "qwen2"
        and model.use_sliding_window
        and model.max_window_layers < model.num_hidden_layers
    ):
        return "it knows no windows in some of the layers only"
    if not HubNames(model).by_one_is_by_all():
        return "its checkpoints join tensors that a weight sync sends one by one"
    return None
