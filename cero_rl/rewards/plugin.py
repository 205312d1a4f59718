"""User reward functions, `path/to/file.py:function`, in the signatures people already have.

TRL's, which scores a batch, and verl's, which scores one item:

    f(prompts, completions, **columns) -> list[float | None]
    compute_score(data_source, solution_str, ground_truth, extra_info) -> float | {"score": ...}

verl's for a batch and OpenRLHF's, where a query is the prompt and the response:

    f(data_sources, solution_strs, ground_truths, extra_infos) -> list of the same
    f(queries, prompts, labels) -> list or {"rewards": ...}

A dict may hold more numbers beside its score, which are logged. A batch function with a true
attribute `whole_group` gets all completions of one prompt in a call, and no others.
`finish_reasons` (TRL, OpenRLHF) and the entry `finish_reason` of `extra_info` (verl) say whether a
completion was cut: stop or length; a column of that name stands before it. All may be async; all
calls of a worker share one event loop. The answer comes as the data holds it: a list stays a list.
This module runs in the worker process; in the trainer it only looks at the path.
Raises RewardError (exit 5).
"""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from cero_rl.errors import RewardError
from cero_rl.rewards.base import RewardItem

SIGNATURES = (
    "f(prompts, completions, **columns) -> list of floats, or "
    "compute_score(data_source, solution_str, ground_truth, extra_info) -> float, or for batches "
    "verl's (solution_strs, ground_truths) and OpenRLHF's (queries, prompts, labels)"
)

_NOT_OFFERED = ("completion_ids", "completions_ids", "trainer_state", "log_extra", "log_metric")


@dataclass(frozen=True, slots=True)
class Scorer:
    """A verifier as the worker calls it: items -> one value each (a number, None, or NaN)."""

    score: Callable[[Sequence[RewardItem]], list[Any]]
    batched: bool  # several items a call
    whole_groups: bool = False  # all of a prompt's items in one call, and no others


@contextmanager
def _without_bytecode() -> Iterator[None]:
    """Nothing is written beside a user's file."""
    before = sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


def split_path(function: str) -> tuple[Path, str]:
    """`path.py:name` -> (path, name), checked without importing. Raises RewardError for a
    missing file or a malformed value."""
    path_text, _, name = function.rpartition(":")
    path = Path(path_text)
    if not path_text.endswith(".py") or not name.isidentifier():
        raise RewardError(
            f"reward.function: got {function!r}, wanted exact, math, reasoning_gym or "
            "path/to/file.py:function"
        )
    if not path.is_file():
        raise RewardError(
            f"reward.function: {path} does not exist (looked in {Path.cwd()}); give the "
            "path of a Python file"
        )
    return path.resolve(), name


def import_file(path: Path, key: str) -> ModuleType:
    """A user's file as a module, in a worker process alone. Raises RewardError with the `key` of
    the configuration that names it."""
    spec = importlib.util.spec_from_file_location("cero_user_file", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    # last, so that a neighbour of the file cannot shadow a library
    sys.path.append(str(path.parent))
    try:
        with _without_bytecode():
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise RewardError(
            f"{key}: importing {path} failed ({describe(error)}); the file must import on its own"
        ) from None
    return module


def load_plugin(function: str, kwargs: Mapping[str, Any] = MappingProxyType({})) -> Scorer:
    """Import the file and adapt its function, `kwargs` bound to it. Raises RewardError: import
    failure, no such function or parameter, unknown signature."""
    path, name = split_path(function)
    asyncio.set_event_loop(_loop())  # some clients look for it while they are imported
    module = import_file(path, "reward.function")
    found = vars(module).get(name)
    if not callable(found):
        functions = [
            n
            for n, v in vars(module).items()
            if inspect.isfunction(v) and v.__module__ == module.__name__
        ]
        raise RewardError(
            f"reward.function: {path} has no function {name!r}; it has "
            f"{', '.join(functions) or 'none'}"
        )
    try:
        parameters = inspect.signature(found).parameters
    except (TypeError, ValueError):
        parameters = {}
    whole_groups = bool(getattr(found, "whole_group", False))
    parameters, found = _bound(found, parameters, kwargs, f"{path}:{name}")
    if {"solution_str", "ground_truth"} <= set(parameters):
        if whole_groups:
            raise RewardError(
                f"reward.function: {path}:{name} asks for a whole_group, but scores one item; "
                "wanted a function that takes lists (completions, or solution_strs)"
            )
        return Scorer(score=_adapt_one(found, parameters), batched=False)
    for offer, wanted in (
        (_for_trl, {"completions"}),
        (_for_verl, {"solution_strs", "ground_truths"}),
        (_for_openrlhf, {"queries", "labels"}),
    ):
        if wanted <= set(parameters):
            return Scorer(_adapt_batch(found, parameters, offer), True, whole_groups)
    shown = f"({', '.join(map(str, parameters.values()))})"
    raise RewardError(f"reward.function: {path}:{name} takes {shown}; wanted {SIGNATURES}")


def _bound(
    function: Callable[..., Any], parameters: Any, kwargs: Mapping[str, Any], what: str
) -> tuple[Any, Callable[..., Any]]:
    """(the parameters that are left, the function with reward.kwargs). RewardError for a name that
    it does not take."""
    if not kwargs:
        return parameters, function
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    unknown = [name for name in kwargs if name not in parameters and not takes_all]
    if unknown:
        raise RewardError(
            f"reward.kwargs: {what} takes no {unknown[0]!r}; it takes {', '.join(parameters)}"
        )

    def call(**given: Any) -> Any:
        return function(**{**given, **kwargs})

    return {name: p for name, p in parameters.items() if name not in kwargs}, call


def describe(error: BaseException) -> str:
    """An exception as one short line."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}"[:300] if lines else type(error).__name__


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """The worker's event loop: one for all calls, so that a client, lock or semaphore of the
    plug-in that bound itself to it in the first call still works in the next."""
    return asyncio.new_event_loop()


def close_loop() -> None:
    """End what the plug-in left running, as `asyncio.run` would: at the end of the worker."""
    if not _loop.cache_info().currsize:
        return
    loop = _loop()
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


def _call(function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    """What the function returns, awaited where it has to be; the items of an async generator.

    A sync function is called outside of the loop, since it may call `asyncio.run` itself, which
    leaves no current loop behind: so it is set before each call.
    """
    asyncio.set_event_loop(_loop())
    result = function(**arguments)
    if inspect.isawaitable(result):

        async def wait() -> Any:
            return await result

        return _loop().run_until_complete(wait())
    if inspect.isasyncgen(result):

        async def collect() -> list[Any]:
            return [value async for value in result]

        return _loop().run_until_complete(collect())
    return result


def _select(parameters: Any, offered: dict[str, Any]) -> dict[str, Any]:
    """The offered arguments the function takes. Raises RewardError for a required parameter that
    is not offered."""
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        chosen = offered
    else:
        chosen = {k: v for k, v in offered.items() if k in parameters}
    for name, parameter in parameters.items():
        named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if named and parameter.default is parameter.empty and name not in chosen:
            if name in _NOT_OFFERED:
                raise RewardError(
                    f"reward.function: parameter {name!r} is TRL's, and is not offered here; give "
                    "it a default"
                )
            raise RewardError(
                f"reward.function: parameter {name!r} has no default and the data has no such "
                f"column; found {', '.join(offered)}"
            )
    return chosen


def _for_trl(items: Sequence[RewardItem]) -> dict[str, Any]:
    names = list(dict.fromkeys(name for item in items for name in item.columns))
    return {
        "answer": [item.answer for item in items],
        "data_source": [item.source for item in items],
        "finish_reasons": [item.finish_reason for item in items],
        **{name: [item.columns.get(name) for item in items] for name in names},
        "prompts": [item.prompt for item in items],
        "completions": [
            item.completion
            if isinstance(item.prompt, str)
            else [{"role": "assistant", "content": item.completion}]
            for item in items
        ],
    }


def _for_verl(items: Sequence[RewardItem]) -> dict[str, Any]:
    return {f"{name}s": [_of_one(item)[name] for item in items] for name in _of_one(items[0])}


def _for_openrlhf(items: Sequence[RewardItem]) -> dict[str, Any]:
    prompts = [
        item.prompt
        if isinstance(item.prompt, str)
        else "\n".join(message["content"] for message in item.prompt) + "\n"
        for item in items
    ]
    return {
        "queries": [prompt + item.completion for prompt, item in zip(prompts, items)],
        "prompts": prompts,
        "labels": [item.answer for item in items],
        "finish_reasons": [item.finish_reason for item in items],
    }


def _of_one(item: RewardItem) -> dict[str, Any]:
    return {
        "data_source": item.source,
        "solution_str": item.completion,
        "ground_truth": item.answer,
        "extra_info": _extra_info(item),
    }


def _extra_info(item: RewardItem) -> Any:
    given = item.columns.get("extra_info") or {}
    if not isinstance(given, dict):
        return given
    return {"finish_reason": item.finish_reason, **given}


def _adapt_batch(
    function: Callable[..., Any],
    parameters: Any,
    offer: Callable[[Sequence[RewardItem]], dict[str, Any]],
) -> Callable[[Sequence[RewardItem]], list[Any]]:
    def score(items: Sequence[RewardItem]) -> list[Any]:
        values = _call(function, _select(parameters, offer(items)))
        if isinstance(values, dict):
            if "rewards" not in values:
                raise RewardError(
                    f"reward.function: got a dict with the keys {', '.join(map(str, values))}; "
                    "wanted a list with one number for each completion, or the key rewards"
                )
            logs = values.get("extra_logs")
            values = _with_logs(values["rewards"], logs if isinstance(logs, dict) else {})
        try:
            if isinstance(values, str | bytes):
                raise TypeError
            values = list(values)
        except TypeError:
            raise RewardError(
                f"reward.function: got a {type(values).__name__} for {len(items)} completions, "
                f"wanted a list with one number for each"
            ) from None
        if len(values) != len(items):
            raise RewardError(
                f"reward.function: got {len(values)} rewards for {len(items)} completions; "
                "return one for each"
            )
        return [_checked(value) for value in values]

    return score


def _adapt_one(
    function: Callable[..., Any], parameters: Any
) -> Callable[[Sequence[RewardItem]], list[Any]]:
    def score(items: Sequence[RewardItem]) -> list[Any]:
        return [_checked(_call(function, _select(parameters, _of_one(i)))) for i in items]

    return score


def _checked(value: Any) -> Any:
    """A number, or verl's dict with a score."""
    if isinstance(value, dict) and "score" not in value:
        raise RewardError(
            f"reward.function: got a dict with {', '.join(map(str, value)) or 'no keys'}, wanted "
            "the key 'score'"
        )
    return value


def _with_logs(values: Any, logs: dict[Any, Any]) -> Any:
    """OpenRLHF's rewards, each with its entries of extra_logs: one for each, or one for all."""
    if not logs:
        return values
    values = list(values)
    rows: list[dict[Any, Any]] = [{} for _ in values]
    for key, given in logs.items():
        try:
            of_each = list(given)
        except TypeError:
            of_each = [given] * len(values)
        for row, entry in zip(rows, of_each):
            row[key] = entry
    return [{**row, "score": value} for row, value in zip(rows, values)]
