"""The sections on what is trained, on what, for how much: model, data, budget."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from cero_rl.config.base import PositiveInt, Section
from cero_rl.config.paths import PathText, PathTexts


class ModelConfig(Section):
    path: PathText = Field(description="directory in save_pretrained layout, or a Hugging Face id")
    dtype: Literal["float32", "bfloat16"] = Field(
        default="bfloat16", description="of the weights in forward and backward; float32 on CPUs"
    )
    attention: Literal["auto", "sdpa", "flash_attention_2"] = Field(
        default="auto",
        description="of packed sequences in the learner; auto: flash-attn on a GPU where it is "
        "installed, else sdpa",
    )
    gradient_checkpointing: bool = Field(
        default=False,
        description="recompute activations in the backward pass: less memory, about a third slower",
    )


class DataConfig(Section):
    """Where prompts come from. `source` is one or more .jsonl/.parquet files (behind commas, a
    pattern, a directory), a Hugging Face id, or reasoning_gym:NAME."""

    source: PathTexts = Field(description="training prompts")
    split: str = Field(
        default="train",
        description="split of a Hugging Face data set, or of a directory's files (train*.jsonl)",
    )
    config_name: str | None = Field(default=None, description="subset of a Hugging Face data set")
    heldout_source: PathTexts | None = Field(
        default=None, description="evaluation prompts; never trained on. None: a share of `source`"
    )
    heldout_split: str = Field(
        default="test", description="split of `heldout_source`, where it has splits"
    )
    heldout_config_name: str | None = Field(
        default=None,
        description="subset of `heldout_source`; None: config_name if both sources are the same",
    )
    heldout_fraction: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="share of `source` set aside by content hash if `heldout_source` is null",
    )
    limit: PositiveInt | None = Field(
        default=None, description="use only the first prompts of `source`"
    )
    heldout_limit: PositiveInt | None = Field(
        default=None, description="use only the first held-out prompts"
    )
    prompt_column: str = Field(default="prompt", description="text, or a list of chat messages")
    answer_column: str = Field(
        default="answer",
        description="reference answer, a dotted name for a field of a column; all other columns "
        "reach the reward function too",
    )
    heldout_prompt_column: str | None = Field(
        default=None, description="of `heldout_source`; None: prompt_column"
    )
    heldout_answer_column: str | None = Field(
        default=None, description="of `heldout_source`; None: answer_column"
    )
    procedural_size: PositiveInt = Field(
        default=1000, description="items drawn from a reasoning_gym set"
    )
    system_prompt: str | None = Field(
        default=None, description="put before every prompt, as a system message or as text"
    )
    prompt_suffix: str = Field(default="", description="appended to every user prompt")
    chat_template: Literal["auto", "always", "never"] = Field(
        default="auto",
        description="auto: where the tokenizer has one, else text as it is; messages need one",
    )
    enable_thinking: bool | None = Field(
        default=None, description="passed to chat templates that know it"
    )
    chat_template_kwargs: dict[str, bool | int | float | str] = Field(
        default={}, description="further words for a chat template that knows them"
    )
    max_prompt_tokens: PositiveInt = Field(default=1024, description="template included")
    overlong_prompt: Literal["error", "drop"] = Field(
        default="error", description="what becomes of a longer prompt"
    )

    @field_validator("source", "heldout_source", mode="before")
    @classmethod
    def _several(cls, value: object) -> object:
        """A list of files in the YAML file is the same as their names behind commas."""
        if not isinstance(value, list):
            return value
        if not all(isinstance(name, str) and name and "," not in name for name in value):
            raise ValueError(f"got {value}; wanted names of files, none with a comma")
        return ",".join(value)


class BudgetConfig(Section):
    total_rollouts: PositiveInt = Field(
        description="rollouts generated for training in the whole run, kept or dropped"
    )
    total_tokens: PositiveInt | None = Field(
        default=None, description="a second limit, in response tokens (CERO's family only)"
    )
