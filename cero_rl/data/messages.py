"""The prompt's column as text or chat messages, and the tools that a row offers, as TRL, verl and
the chat templates of transformers write them.

What a template may use is kept: names, reasoning, `tool_calls` and their ids. Columnar files fill
what a row lacks with nulls, which are taken out again. Raises DataError with the row's place for
what cannot be rendered.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from cero_rl.errors import DataError

_WANTED = 'wanted text, or a list of messages such as [{"role": "user", "content": "..."}]'


def example(row: object) -> str:
    """A row, or a piece of it, short enough for a message."""
    text = json.dumps(row, default=str, ensure_ascii=True)
    return text if len(text) <= 160 else text[:157] + "..."


def read_content(value: Any, where: str, column: str) -> str | list[dict[str, Any]]:
    """What stands in the prompt's column: text, or messages with role and content (text) each."""
    if isinstance(value, str):
        if not value.strip():
            raise DataError(f"{where}: the prompt in column {column!r} is empty; remove the row")
        return value
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: the prompt in column {column!r} is {_kind(value)}; {_WANTED}")
    return [_message(message, f"{where}: the prompt in column {column!r}") for message in value]


def read_tools(row: Mapping[str, Any], where: str) -> list[dict[str, Any]] | None:
    """The column `tools`: schemas of functions, as a list or its JSON text; None where there is
    none, or another thing of that name, which is no business of the chat template."""
    value = row.get("tools")
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    if not isinstance(value, list) or not any(isinstance(tool, dict) for tool in value):
        return None
    if not all(_name_of(tool) for tool in value):
        raise DataError(
            f"{where}: the column 'tools' holds {example(value)}; wanted a list of functions such "
            'as [{"type": "function", "function": {"name": ..., "parameters": ...}}], or another '
            "name for the column"
        )
    return [_without_nulls(tool) for tool in value]


def names_of(tools: list[Any]) -> list[str]:
    """Names of functions in schemas or in calls."""
    return [name for tool in tools if (name := _name_of(tool))]


def _name_of(tool: Any) -> str | None:
    if not isinstance(tool, dict):
        return None
    inner = tool.get("function")
    name = (inner if isinstance(inner, dict) else tool).get("name")
    return name if isinstance(name, str) else None


def _message(message: Any, what: str) -> dict[str, Any]:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise DataError(f"{what} holds the message {example(message)}; {_WANTED}")
    kept = {key: value for key, value in _without_nulls(message).items() if value != []}
    calls, content = kept.get("tool_calls"), kept.get("content", "")
    if isinstance(content, list):
        content = _text_of(content, what)
    if not isinstance(content, str) or ("content" not in kept and calls is None):
        raise DataError(f"{what} holds the message {example(message)}; {_WANTED}")
    if calls is not None:
        if not isinstance(calls, list) or len(names_of(calls)) < len(calls):
            raise DataError(
                f"{what} holds tool_calls {example(calls)}; wanted a list such as "
                '[{"type": "function", "function": {"name": ..., "arguments": {...}}}]'
            )
        kept["tool_calls"] = [_call(call) for call in calls]
    return {**kept, "content": content}


def _text_of(parts: list[Any], what: str) -> str:
    """Content in parts, joined, where all of them are text."""
    for part in parts:
        if not isinstance(part, dict) or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise DataError(
                f"{what} holds a content part of type {kind!r}, which this does not train on; "
                'wanted text, or parts such as {"type": "text", "text": "..."}'
            )
    return "".join(part["text"] for part in parts)


def _call(call: dict[str, Any]) -> dict[str, Any]:
    """Arguments as a mapping, which templates want, where the data has their JSON text."""
    inner = call.get("function")
    if isinstance(inner, dict):
        return {**call, "function": _call(inner)}
    arguments = call.get("arguments")
    if isinstance(arguments, str):
        try:
            read = json.loads(arguments)
        except ValueError:
            return call
        if isinstance(read, dict):
            return {**call, "arguments": read}
    return call


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_without_nulls(v) for v in value]
    return value


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    return (
        f"an empty {type(value).__name__}"
        if value in ([], {})
        else f"of type {type(value).__name__}"
    )
