"""One prompt with the identity that survives runs: a hash of what is asked and what is expected,
not its place in a file.

In: text or chat messages, an answer, any further columns. Out: `Prompt` records, and one
fingerprint for an ordered set of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Messages = tuple[dict[str, Any], ...]


def _digest(value: object) -> str:
    canonical = json.dumps(value, ensure_ascii=True, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


@dataclass(frozen=True, slots=True)
class Prompt:
    """One task. Exactly one of `text` and `messages` is set; build it with `make_prompt`, which
    fills the key."""

    # 16 hex digits: sha256 of the canonical JSON of (text or messages, answer, tools if any)
    key: str
    text: str | None
    messages: Messages | None
    answer: str  # as text, for the key and for people; a list or mapping is canonical JSON
    source: str  # data_source column, or the file, id or set it came from
    columns: Mapping[str, Any]  # every column but the prompt's
    tools: list[dict[str, Any]] | None = None  # functions that the chat template is given
    # the answer as the data holds it (text, number, list, mapping): what rewards get
    reference: Any = field(default=None, compare=False)
    where: str = field(default="", compare=False)  # file and line, for messages

    @property
    def content(self) -> str | list[dict[str, Any]]:
        """The prompt as reward functions get it: text, or a list of messages."""
        return self.text if self.text is not None else [dict(m) for m in self.messages or ()]

    @property
    def asked(self) -> str:
        """For a person: the text, or what the last message says."""
        if self.text is not None or not self.messages:
            return self.text or ""
        said = self.messages[-1].get("content")
        return said if isinstance(said, str) else json.dumps(said)


def make_prompt(
    content: str | Sequence[Mapping[str, Any]],
    answer: str,
    source: str,
    columns: Mapping[str, Any],
    *,
    tools: list[dict[str, Any]] | None = None,
    reference: Any = None,
    where: str = "",
) -> Prompt:
    """Build a Prompt with its key from text or chat messages. Without a `reference` the answer is
    its own."""
    text = content if isinstance(content, str) else None
    messages = None if isinstance(content, str) else tuple(dict(m) for m in content)
    asked = [text if text is not None else messages, answer, *([tools] if tools else [])]
    return Prompt(
        key=_digest(asked)[:16],
        text=text,
        messages=messages,
        answer=answer,
        source=source,
        columns=columns,
        tools=tools,
        reference=answer if reference is None else reference,
        where=where,
    )


def with_tools(prompt: Prompt, tools: list[dict[str, Any]]) -> Prompt:
    """The prompt with an environment's tools beside its own, under a key of its own."""
    return make_prompt(
        prompt.content,
        prompt.answer,
        prompt.source,
        prompt.columns,
        tools=[*(prompt.tools or []), *tools],
        reference=prompt.reference,
        where=prompt.where,
    )


def question_hash(prompt: Prompt) -> str:
    """Hash of what is asked alone (64 hex): text and a single user message with the same words
    are the same question.

    Splits use it, so that a question with two different answers, or in two formats, never stands
    on both sides.
    """
    messages = (
        prompt.messages
        if prompt.messages is not None
        else ({"role": "user", "content": prompt.text or ""},)
    )
    asked = [
        [m["role"], m["content"].strip(), *([m["tool_calls"]] if "tool_calls" in m else [])]
        for m in messages
    ]
    return _digest([*asked, *([prompt.tools] if prompt.tools else [])])


def fingerprint(prompts: Iterable[Prompt]) -> str:
    """sha256 (64 hex) over the keys in order: equal exactly when the same prompts stand in the
    same order."""
    total = hashlib.sha256()
    for prompt in prompts:
        total.update(prompt.key.encode("ascii"))
        total.update(b"\n")
    return total.hexdigest()
