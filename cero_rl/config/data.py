"""The sections on what is trained, on what, for how much: model, data, reward, budget."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from cero_rl.config.base import PositiveFloat, PositiveInt, Seconds, Section
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


class RewardConfig(Section):
    function: PathText = Field(
        default="exact", description="exact | math | reasoning_gym | path/to/file.py:function"
    )
    kwargs: dict[str, bool | int | float | str | list[Any] | dict[str, Any]] = Field(
        default={},
        description="further arguments of a function of yours, by name; they stand before a column "
        "of that name",
    )
    workers: PositiveInt = Field(
        default=2, description="processes on each rank; killed and replaced when a reward hangs"
    )
    timeout_seconds: Seconds = Field(
        default=5.0, description="for one response; beyond it the reward is missing, never 0"
    )
    memory_limit_mb: PositiveInt = Field(default=2048, description="address space of one worker")
    max_chars: PositiveInt = Field(
        default=16384,
        description="exact, math and reasoning_gym read the last characters of a longer response, "
        "where the answer stands; a function of yours gets all of it",
    )
    overlong_buffer_tokens: PositiveInt | None = Field(
        default=None,
        description="soft overlong punishment (DAPO): the reward that trains falls linearly over "
        "the last so many tokens before rollout.max_response_tokens; the posterior and the "
        "evaluation see the reward without it. None: none",
    )
    overlong_penalty: PositiveFloat = Field(
        default=1.0, description="what it has fallen by at the limit"
    )
    success_threshold: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.5,
        description="a reward above it is a right answer in evaluation (avg@k, pass@k); the "
        "posterior learns from the reward itself, a half counting half",
    )
    max_missing_rate: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.5,
        description="a larger share of missing rewards ends the run, saved (exit 5)",
    )
    missing_window_rollouts: PositiveInt = Field(
        default=128,
        description="of the newest steps that hold so many rollouts between them",
    )

    @model_validator(mode="after")
    def _kwargs_have_a_function(self) -> RewardConfig:
        if self.kwargs and not self.function.rpartition(":")[0].endswith(".py"):
            raise ValueError(
                f"kwargs: got {', '.join(self.kwargs)} with function: {self.function}, which takes "
                "none; leave them out, or set function: path/to/file.py:function"
            )
        return self


class BudgetConfig(Section):
    total_rollouts: PositiveInt = Field(
        description="rollouts generated for training in the whole run, kept or dropped"
    )
    total_tokens: PositiveInt | None = Field(
        default=None, description="a second limit, in response tokens (CERO's family only)"
    )
