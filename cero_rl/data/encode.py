"""Prompts -> token ids, as the model will see them.

Text goes through the tokenizer with its own special tokens (a beginning-of-sequence token, say);
a trailing end-of-sequence token that some tokenizers add is taken off, because generation would
stop on it. Chat-templated prompts get no further special tokens: the template writes its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cero_rl.config.data import DataConfig
from cero_rl.data.prompts import Prompt
from cero_rl.errors import DataError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class EncodedPrompts(NamedTuple):
    tokens: list[npt.NDArray[np.int64]]  # one [m] a kept prompt, 1 <= m <= max_prompt_tokens
    # indices into the prompts given, ascending; all of them unless overlong_prompt is "drop"
    kept: list[int]


def _uses_template(prompt: Prompt, data: DataConfig) -> bool:
    return data.chat_template == "always" or (
        data.chat_template == "auto" and prompt.messages is not None
    )


def chat_messages(prompt: Prompt, data: DataConfig) -> list[dict[str, str]]:
    """The prompt as messages: text becomes one user message, prompt_suffix joins the last user
    message, system_prompt comes first unless the prompt brings its own system message."""
    messages = (
        [dict(m) for m in prompt.messages]
        if prompt.messages is not None
        else [{"role": "user", "content": prompt.text or ""}]
    )
    users = [m for m in messages if m["role"] == "user"]
    if users:
        users[-1]["content"] += data.prompt_suffix
    if data.system_prompt is not None and all(m["role"] != "system" for m in messages):
        messages.insert(0, {"role": "system", "content": data.system_prompt})
    return messages


def _plain_ids(prompt: Prompt, tokenizer: PreTrainedTokenizerBase, data: DataConfig) -> list[int]:
    text = "\n\n".join(message["content"] for message in chat_messages(prompt, data))
    ids = list(tokenizer.encode(text))
    eos = tokenizer.eos_token_id
    if (
        eos is not None
        and ids
        and ids[-1] == eos
        and tokenizer.encode(text, add_special_tokens=False)[-1:] != [eos]
    ):
        ids.pop()
    return ids


def _template_ids(
    prompt: Prompt, tokenizer: PreTrainedTokenizerBase, data: DataConfig
) -> list[int]:
    if not tokenizer.chat_template:
        why = (
            "data.chat_template is 'always'"
            if data.chat_template == "always"
            else "the prompts are chat messages"
        )
        raise DataError(
            f"the tokenizer has no chat template, but {why}; use an instruction-tuned model's "
            "tokenizer, or set data.chat_template: never to join the messages as plain text"
        )
    options: dict[str, Any] = (
        {} if data.enable_thinking is None else {"enable_thinking": data.enable_thinking}
    )
    messages = chat_messages(prompt, data)
    try:
        ids = tokenizer.apply_chat_template(
            messages, tokenize=True, add_generation_prompt=True, return_dict=False, **options
        )
    # templates are Jinja programs and raise whatever their authors chose
    except Exception as error:
        reason = first_line(error)[:200]
        raise DataError(
            f"prompt {prompt.key}: the chat template refuses roles {[m['role'] for m in messages]} "
            f"({reason}); change the messages, or data.system_prompt, to what the template allows"
        ) from None
    return list(ids)  # type: ignore[arg-type]


def encode_prompts(
    prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, data: DataConfig
) -> EncodedPrompts:
    """Tokens of each prompt, and which prompts were kept.

    chat_template: "auto" templates messages and leaves text as it is; "always" wraps text into a
    user message; "never" joins the contents of messages (and the system prompt) with blank
    lines. Raises DataError: no chat template, a prompt without tokens, a prompt above
    max_prompt_tokens under overlong_prompt "error", or no prompt left under "drop".
    """
    tokens: list[npt.NDArray[np.int64]] = []
    kept: list[int] = []
    longest = 0
    for index, prompt in enumerate(prompts):
        ids = (_template_ids if _uses_template(prompt, data) else _plain_ids)(
            prompt, tokenizer, data
        )
        if not ids:
            raise DataError(
                f"prompt {prompt.key} (number {index}) from {prompt.source} has no "
                f"tokens; remove it or use a tokenizer that knows its letters"
            )
        longest = max(longest, len(ids))
        if len(ids) > data.max_prompt_tokens:
            if data.overlong_prompt == "error":
                raise DataError(
                    f"prompt {prompt.key} (number {index}) from {prompt.source} has "
                    f"{len(ids)} tokens, more than data.max_prompt_tokens = "
                    f"{data.max_prompt_tokens}; raise it or set data.overlong_prompt: drop"
                )
            continue
        tokens.append(np.asarray(ids, dtype=np.int64))
        kept.append(index)
    if prompts and not kept:
        raise DataError(
            f"all {len(prompts)} prompts are longer than data.max_prompt_tokens = "
            f"{data.max_prompt_tokens} (longest {longest}); raise it"
        )
    return EncodedPrompts(tokens, kept)
