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
    "gpt_neox": "it computes other log-probabilities than transformers from the same file",
}


def refuse_unfit_for_vllm(path: str, model: Any, longest_tokens: int) -> None:
    """Raises ConfigError with the reason. `longest_tokens` are prompt and response together."""
    reason = UNFIT.get(model.model_type)
    if model.model_type == "cohere2" and longest_tokens > model.sliding_window:
        reason = f"it sees a token more than the window of {model.sliding_window}"
    if reason is None and not HubNames(model).by_one_is_by_all():
        reason = "its checkpoints join tensors that a weight sync sends one by one"
    if reason is not None:
        raise ConfigError(
            f"rollout.engine: vllm 0.32 does not sample {path!r}, a {model.model_type}, as it is "
            f"trained ({reason}); {_REMEDY}"
        )
