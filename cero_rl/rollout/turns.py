"""What an environment says, as tokens behind what was sampled: the chat template's text between the
model's end of turn and its next turn. What was sampled is never made text and tokens again.

The template is asked for a short conversation with the same last turns, and what it writes behind
the end token of the model's message is taken. So a template that changes earlier answers (one that
drops their reasoning, say) does not change what the model has written here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cero_rl.config.data import DataConfig
from cero_rl.data.encode import template_options, uses_template
from cero_rl.data.prompts import Prompt
from cero_rl.errors import DataError, first_line

_MARK = "0a1b2c3d"  # stands for the model's words


class TurnWriter:
    """Messages -> tokens, by the tokenizer's chat template, or as plain text without one."""

    def __init__(self, tokenizer: Any, data: DataConfig, eos_token_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._data = data
        self._ends = tokenizer.convert_ids_to_tokens(list(eos_token_ids))

    def tokens(
        self, task: Prompt, last: Mapping[str, Any], new: Sequence[Mapping[str, Any]]
    ) -> list[int]:
        """i64[n] what stands between the end token of the model's message `last` and its next
        words. Raises DataError for messages that the template refuses."""
        if not uses_template(task, self._tokenizer, self._data):
            text = "\n\n".join(str(message["content"]) for message in new)
            return list(self._tokenizer.encode(text, add_special_tokens=False))
        said = {**last, "content": _MARK}
        text = self._written(task, [{"role": "user", "content": "."}, said, *map(dict, new)])
        behind = text.partition(_MARK)[2]
        places = [(behind.find(end), len(end)) for end in self._ends if end in behind]
        if not places:
            raise DataError(
                f"the chat template writes none of {', '.join(self._ends)} behind an answer, so "
                "turns cannot follow each other; use the tokenizer of a chat model"
            )
        first, length = min(places)
        tail = behind[first + length :]
        return list(self._tokenizer.encode(tail, add_special_tokens=False))

    def _written(self, task: Prompt, messages: list[dict[str, Any]]) -> str:
        options = template_options(self._tokenizer, self._data)
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    messages,
                    tools=task.tools,
                    tokenize=False,
                    add_generation_prompt=True,
                    **options,
                )
            )
        except Exception as error:  # templates raise whatever their authors chose
            roles = [m["role"] for m in messages]
            raise DataError(
                f"the chat template refuses the environment's roles {roles} "
                f"({first_line(error)[:200]}); let it answer in roles that the template knows"
            ) from None
