"""Prompts -> token ids, as the model will see them.

Text goes through the tokenizer with its own special tokens (a beginning-of-sequence token, say);
a trailing end-of-sequence token that some tokenizers add is taken off, because generation would
stop on it. Chat-templated prompts get no further special tokens: the template writes its own. A
last message of the assistant is the beginning of the response: it is left open, and generation goes
on behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cero_rl.config.data import DataConfig
from cero_rl.data.messages import names_of
from cero_rl.data.prompts import Prompt
from cero_rl.errors import DataError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class EncodedPrompts(NamedTuple):
    tokens: list[npt.NDArray[np.int64]]  # one [m] a kept prompt, 1 <= m <= max_prompt_tokens
    # indices into the prompts given, ascending; all of them unless overlong_prompt is "drop"
    kept: list[int]
    templated: int = 0  # kept prompts that went through the chat template
    overlong: int = 0  # prompts left out
    first_overlong: str = ""  # the first of them, in words


def uses_template(prompt: Prompt, tokenizer: PreTrainedTokenizerBase, data: DataConfig) -> bool:
    """Does the chat template write this prompt? Raises DataError for one that it wrote already."""
    if data.chat_template != "auto":
        return data.chat_template == "always"
    if prompt.text is None:
        return True
    if not tokenizer.chat_template:
        return False
    for token in tokenizer.all_special_tokens:
        if str(token) in prompt.text:
            raise DataError(
                f"{named(prompt)} holds {str(token)!r}, a special token, and the tokenizer has a "
                "chat template, which would come on top; set data.chat_template: never if the "
                "texts are complete, or always"
            )
    return True


def named(prompt: Prompt) -> str:
    """A prompt by its place in the data, for messages."""
    return prompt.where or f"prompt {prompt.key}"


def chat_messages(prompt: Prompt, data: DataConfig) -> list[dict[str, Any]]:
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
    messages = chat_messages(prompt, data)
    if prompt.tools or any("tool_calls" in m for m in messages):
        raise DataError(
            f"{named(prompt)} has tools, which only a chat template can show to the model; use "
            "one, or take the column 'tools' and the tool_calls out of the data"
        )
    text = "\n\n".join(m["content"] for m in messages if m["content"])
    ids = list(tokenizer.encode(text))
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    twice = bos is not None and ids[:2] == [bos, bos]
    ended = eos is not None and ids[-1:] == [eos]
    if twice or ended:
        bare = tokenizer.encode(text, add_special_tokens=False)
        if twice and bare[:1] == [bos] and bare[:2] != [bos, bos]:
            ids.pop(0)  # the text brings its own
        if ended and bare[-1:] != [eos]:
            ids.pop()
    return ids


def template_options(tokenizer: PreTrainedTokenizerBase, data: DataConfig) -> dict[str, Any]:
    """What the chat template is given besides messages and tools. Raises DataError for a word that
    it does not know."""
    options: dict[str, Any] = (
        {} if data.enable_thinking is None else {"enable_thinking": data.enable_thinking}
    )
    for name, value in data.chat_template_kwargs.items():
        if name not in str(tokenizer.chat_template):
            raise DataError(
                f"data.chat_template_kwargs: the tokenizer's chat template knows no {name!r}; take "
                "it out, or use a tokenizer whose template does"
            )
        options[name] = value
    return options


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
    options = template_options(tokenizer, data)
    messages = chat_messages(prompt, data)
    goes_on = messages[-1]["role"] == "assistant"
    if goes_on and "tool_calls" in messages[-1]:
        raise DataError(
            f"{named(prompt)} ends in a tool call; end it in the tool's answer, or take the call "
            "out"
        )
    try:
        text: Any = tokenizer.apply_chat_template(
            messages,
            tools=prompt.tools,  # type: ignore[arg-type]
            tokenize=False,
            add_generation_prompt=not goes_on,
            continue_final_message=goes_on,
            **options,
        )
    # templates are Jinja programs and raise whatever their authors chose
    except Exception as error:
        reason = first_line(error)[:200]
        what = "the response's beginning in the last message, or " if goes_on else ""
        raise DataError(
            f"{named(prompt)}: the chat template refuses {what}roles "
            f"{[m['role'] for m in messages]} "
            f"({reason}); change the messages, or data.system_prompt, to what the template allows"
        ) from None
    called = [call for m in messages for call in m.get("tool_calls", [])]
    for name in names_of([*(prompt.tools or []), *called]):
        if name not in text:
            raise DataError(
                f"{named(prompt)}: the chat template leaves out the tool {name!r}; use a tokenizer "
                "whose template knows tools, or take the column 'tools' and the tool_calls out"
            )
    return list(tokenizer.encode(text, add_special_tokens=False))


def encode_prompts(
    prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, data: DataConfig
) -> EncodedPrompts:
    """Tokens of each prompt, and which prompts were kept.

    chat_template: "auto" uses the tokenizer's template where it has one, and leaves text as it is
    where it has none; "always" asks for one; "never" joins the contents of messages (and the
    system prompt) with blank lines. Raises DataError: messages without a chat template, text under
    "auto" that is templated already, tools that the model would not see, a prompt without tokens,
    a prompt above max_prompt_tokens under overlong_prompt "error", or no
    prompt left under "drop".
    """
    tokens: list[npt.NDArray[np.int64]] = []
    kept: list[int] = []
    longest = templated = overlong = 0
    first_overlong = ""
    for index, prompt in enumerate(prompts):
        wrap = uses_template(prompt, tokenizer, data)
        ids = (_template_ids if wrap else _plain_ids)(prompt, tokenizer, data)
        if not ids:
            raise DataError(
                f"{named(prompt)} (number {index}) from {prompt.source} has no "
                f"tokens; remove it or use a tokenizer that knows its letters"
            )
        longest = max(longest, len(ids))
        if len(ids) > data.max_prompt_tokens:
            if data.overlong_prompt == "error":
                raise DataError(
                    f"{named(prompt)} (number {index}) from {prompt.source} has "
                    f"{len(ids)} tokens, more than data.max_prompt_tokens = "
                    f"{data.max_prompt_tokens}; raise it or set data.overlong_prompt: drop"
                )
            first_overlong = first_overlong or f"{named(prompt)} has {len(ids)} tokens"
            overlong += 1
            continue
        tokens.append(np.asarray(ids, dtype=np.int64))
        kept.append(index)
        templated += wrap
    if prompts and not kept:
        raise DataError(
            f"all {len(prompts)} prompts are longer than data.max_prompt_tokens = "
            f"{data.max_prompt_tokens} (longest {longest}); raise it"
        )
    return EncodedPrompts(tokens, kept, templated, overlong, first_overlong)
