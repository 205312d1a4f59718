"""The start model's generation_config.json: read, and made fit to be saved again.

transformers loads settings that it refuses to save, so a model could be trained to the end and then
not be exported. They do not change a rollout: the sampler takes only the end-of-sequence ids from
here."""

from __future__ import annotations

import copy
from typing import Any

from cero_rl.errors import ConfigError, first_line

# Only sampling reads them, with the value that transformers takes for "not set".
_SAMPLING = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 50,
    "min_p": None,
    "top_h": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
}
# Ignored where the setting that they belong to is off.
_IDLE = ("early_stopping", "length_penalty", "cache_implementation", "cache_config")
_OUTPUTS = ("output_attentions", "output_hidden_states", "output_scores", "output_logits")


def read_generation_config(path: str) -> Any:
    """What transformers takes for the model at `path`: generation_config.json, or what config.json
    says where there is none. Raises ConfigError for a file that cannot be used."""
    from transformers import AutoConfig, GenerationConfig
    from transformers.utils.hub import cached_file

    try:
        there = cached_file(
            path, "generation_config.json", _raise_exceptions_for_missing_entries=False
        )
        if there is None:
            return GenerationConfig.from_model_config(
                AutoConfig.from_pretrained(path, trust_remote_code=False)
            )
        return GenerationConfig.from_pretrained(path)
    # a file that is no JSON, or holds values that its class refuses in one of a dozen types
    except Exception as error:
        raise ConfigError(_unusable(path, error)) from None


def exportable_generation_config(generation: Any, path: str) -> tuple[Any, tuple[str, ...]]:
    """A copy of a GenerationConfig that `save_pretrained` takes, and each repair in words.

    Settings of sampling without do_sample get do_sample: true, as their author meant them
    (temperature 0 means greedy: then they go); settings that are ignored for another reason go.
    `path` is the model's, for the error: ConfigError for what no repair here makes valid.
    """
    fit, said = copy.deepcopy(generation), []
    if _problem(fit) is None:
        return fit, ()
    given = {n: getattr(fit, n, None) for n in _SAMPLING}
    given = {n: value for n, value in given.items() if value not in (None, _SAMPLING[n])}
    if given and fit.do_sample is not True:
        shown = ", ".join(f"{name} {value}" for name, value in given.items())
        if fit.temperature == 0 or all(value in (0, -1) for value in given.values()):
            for name in given:
                setattr(fit, name, None)
            said.append(f"{shown} taken out, without effect in greedy decoding")
        else:
            fit.do_sample = True
            said.append(f"do_sample set to true, without which {shown} is ignored")
    if fit.pad_token_id is not None and fit.pad_token_id < 0:
        said.append(f"pad_token_id {fit.pad_token_id} taken out")
        fit.pad_token_id = None
    for name in (*_IDLE, *_OUTPUTS):
        if _problem(fit) is None:
            break
        if (value := getattr(fit, name, None)) not in (None, False):
            setattr(fit, name, None)
            said.append(f"{name} {value} taken out, which was ignored")
    if (problem := _problem(fit)) is not None:
        raise ConfigError(_unusable(path, problem))
    return fit, tuple(said)


def _problem(generation: Any) -> Exception | None:
    """What `save_pretrained` would raise, or what no reader could use."""
    try:
        for name in _SAMPLING:
            if isinstance(value := getattr(generation, name, None), str | bool | list):
                raise TypeError(f"{name} is {value!r}, no number")
        generation.validate(strict=True)
    except Exception as error:  # comparisons of values of the wrong type too
        return error
    return None


def _unusable(path: str, error: Exception) -> str:
    return (
        f"model.path: the generation_config.json of {path!r} cannot be used or saved again "
        f"({first_line(error)[:300]}); repair it there, or remove the file"
    )
