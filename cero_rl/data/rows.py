"""Row -> Prompt: finds prompt and answer by the conventions of TRL and verl, and refuses rows that
cannot be trained on.

TRL: prompt (text or messages) + answer | solution | ground_truth. verl: data_source, prompt
(messages), reward_model.ground_truth, extra_info. A column name given in the configuration wins
over the conventions.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from cero_rl.config.data import DataConfig
from cero_rl.data.prompts import Prompt, make_prompt
from cero_rl.data.sources import Row
from cero_rl.errors import DataError

_ANSWER_COLUMNS = ("answer", "solution", "ground_truth")
_SHOWN_ROWS = 8


def _example(row: object) -> str:
    text = json.dumps(row, default=str, ensure_ascii=False)
    return text if len(text) <= 160 else text[:157] + "..."


def _missing(where: str, field: str, column: str, row: Mapping[str, Any]) -> DataError:
    return DataError(
        f"{where}: no column {column!r} (from {field}); found columns "
        f"{', '.join(map(str, row)) or 'none'}; "
        f"set {field} to one of them; the row is {_example(row)}"
    )


def _content(value: Any, where: str, column: str) -> str | list[dict[str, str]]:
    if isinstance(value, str):
        if not value.strip():
            raise DataError(f"{where}: the prompt in column {column!r} is empty; remove the row")
        return value
    wanted = 'wanted text, or a list of messages such as [{"role": "user", "content": "..."}]'
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: the prompt in column {column!r} is {_kind(value)}; {wanted}")
    messages: list[dict[str, str]] = []
    for message in value:
        if not isinstance(message, dict) or not all(
            isinstance(message.get(k), str) for k in ("role", "content")
        ):
            raise DataError(
                f"{where}: the prompt in column {column!r} holds the message "
                f"{_example(message)}; {wanted}"
            )
        messages.append({k: v for k, v in message.items() if isinstance(v, str)})
    return messages


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    return (
        f"an empty {type(value).__name__}"
        if value in ([], {})
        else f"of type {type(value).__name__}"
    )


def _find_answer(row: Mapping[str, Any], data: DataConfig, where: str) -> Any:
    if data.answer_column in row:
        return row[data.answer_column]
    if data.answer_column == "answer":
        for name in _ANSWER_COLUMNS:
            if name in row:
                return row[name]
        reward_model = row.get("reward_model")
        if isinstance(reward_model, dict) and "ground_truth" in reward_model:
            return reward_model["ground_truth"]
    raise _missing(where, "data.answer_column", data.answer_column, row)


def _answer_text(value: Any) -> str | None:
    if value is None or (isinstance(value, float) and value != value):
        return None
    if isinstance(value, str):
        return value if value.strip() else None
    if isinstance(value, (list, dict)):
        return json.dumps(value, sort_keys=True, default=str) if value else None
    return str(value)


def read_prompts(
    rows: Iterable[Row], source: str, data: DataConfig, prompt_column: str, procedural: bool
) -> list[Prompt]:
    """All rows as prompts, in order, duplicates included.

    Raises DataError: no rows, missing column (found columns and the row), prompt of a wrong type,
    null answers (their rows). Items of a procedural set may lack an answer: their scorer
    regenerates the item.
    """
    prompts: list[Prompt] = []
    without_answer: list[str] = []
    for where, row in rows:
        if prompt_column not in row:
            raise _missing(where, "data.prompt_column", prompt_column, row)
        content = _content(row[prompt_column], where, prompt_column)
        answer = _answer_text(row["answer"] if procedural else _find_answer(row, data, where))
        if answer is None and not procedural:
            without_answer.append(where)
            continue
        origin = row.get("data_source")
        columns = {k: v for k, v in row.items() if k != prompt_column}
        prompts.append(
            make_prompt(
                content, answer or "", origin if isinstance(origin, str) else source, columns
            )
        )
    if without_answer:
        shown = ", ".join(
            where.removeprefix(source).lstrip(": ") for where in without_answer[:_SHOWN_ROWS]
        )
        more = (
            f" and {len(without_answer) - _SHOWN_ROWS} more"
            if len(without_answer) > _SHOWN_ROWS
            else ""
        )
        raise DataError(
            f"{source}: {len(without_answer)} answers are null or empty, at {shown}{more}; "
            "fill in the answers or remove the rows"
        )
    if not prompts:
        raise DataError(f"{source}: holds no prompts; give a file or split with at least one row")
    return prompts
