"""Row -> Prompt: finds prompt and answer by the conventions of TRL and verl, and refuses rows that
cannot be trained on.

TRL: prompt (text or messages) + answer | solution | ground_truth. verl: data_source, prompt
(messages), reward_model.ground_truth, extra_info. A column name given in the configuration wins
over the conventions; a dotted one is a field of a column.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from decimal import Decimal
from typing import Any

from cero_rl.config.data import DataConfig
from cero_rl.data.messages import example, read_content, read_tools
from cero_rl.data.prompts import Prompt, make_prompt
from cero_rl.data.sources import Row
from cero_rl.errors import DataError, first_line

_ANSWER_COLUMNS = ("solution", "ground_truth")
_SHOWN_ROWS = 8


def _missing(where: str, field: str, column: str, row: Mapping[str, Any]) -> DataError:
    return DataError(
        f"{where}: no column {column!r} (from {field}); found columns "
        f"{', '.join(map(str, row)) or 'none'}; "
        f"set {field} to one of them; the row is {example(row)}"
    )


def _find_answer(row: Mapping[str, Any], data: DataConfig, where: str) -> Any:
    column = data.answer_column
    if column in row:
        return row[column]
    if column == "answer":
        reward_model = _fields(row.get("reward_model"))
        if "ground_truth" in reward_model:
            return reward_model["ground_truth"]
        for name in _ANSWER_COLUMNS:
            if name in row:
                return row[name]
    outer, dot, inner = column.partition(".")
    if dot and inner in (fields := _fields(row.get(outer))):
        return fields[inner]
    raise _missing(where, "data.answer_column", column, row)


def _fields(value: Any) -> Mapping[str, Any]:
    """Of a column that holds a mapping, or one written as JSON text, as some data sets do."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        with suppress(ValueError, RecursionError):
            value = json.loads(value)
    return value if isinstance(value, dict) else {}


def _answer_text(value: Any) -> str | None:
    if value is None or (isinstance(value, float | Decimal) and value != value):
        return None
    if isinstance(value, str):
        return value if value.strip() else None
    if isinstance(value, list) and all(_answer_text(entry) is None for entry in value):
        return None
    if isinstance(value, (list, dict)):
        return json.dumps(value, sort_keys=True, default=str) if value else None
    return str(value)


def _has_null(answers: list[Any]) -> bool:
    """Some, but not all: a list of nothing is an answer that is missing."""
    missing = [_answer_text(answer) is None for answer in answers]
    return any(missing) and not all(missing)


def _reference(value: Any) -> Any:
    """The answer as rewards get it: decimals of a parquet file as the numbers they are."""
    if isinstance(value, Decimal) and value.is_finite():
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, (list, tuple)):
        return [_reference(entry) for entry in value]
    return value


def _make(where: str, **parts: Any) -> Prompt:
    """The prompt, if it can be written down: JSON knows no bytes and dates, UTF-8 no half of a
    surrogate pair."""
    try:
        prompt = make_prompt(**parts, where=where)
        for text in (prompt.text or "", prompt.answer, prompt.source):
            text.encode("utf-8")
        json.dumps([prompt.messages, prompt.tools], ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        broken = error.object[error.start : error.start + 1].encode("unicode-escape").decode()
        raise DataError(
            f"{where}: prompt or answer holds {broken}, half of a surrogate pair, which is no "
            "text; repair or remove the row"
        ) from None
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(
            f"{where}: the prompt holds what is no JSON ({first_line(error)}); wanted text, "
            "numbers, lists and mappings"
        ) from None
    return prompt


def read_prompts(
    rows: Iterable[Row], source: str, data: DataConfig, prompt_column: str, procedural: bool
) -> list[Prompt]:
    """All rows as prompts, in order, duplicates included.

    Raises DataError: no rows, missing column (found columns and the row), prompt of a wrong type,
    null answers (their rows), an answer that is bytes. Items of a procedural set may lack an
    answer: their scorer regenerates the item.
    """
    prompts: list[Prompt] = []
    without_answer: list[str] = []
    for where, row in rows:
        if prompt_column not in row:
            raise _missing(where, "data.prompt_column", prompt_column, row)
        content = read_content(row[prompt_column], where, prompt_column)
        reference = row["answer"] if procedural else _find_answer(row, data, where)
        if isinstance(reference, bytes):
            raise DataError(f"{where}: the answer is of type bytes; wanted text or a number")
        if isinstance(reference, list) and _has_null(reference):
            raise DataError(
                f"{where}: the list of answers holds null beside answers: {example(row)}; "
                "remove the null"
            )
        answer = _answer_text(reference)
        if answer is None and not procedural:
            without_answer.append(where)
            continue
        origin = row.get("data_source")
        columns = {k: v for k, v in row.items() if k != prompt_column}
        prompt = _make(
            where,
            content=content,
            answer=answer or "",
            reference=_reference(reference),
            source=origin if isinstance(origin, str) else source,
            columns=columns,
            tools=read_tools(row, where),
        )
        prompts.append(prompt)
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
