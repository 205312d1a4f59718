"""Shell completion, by argcomplete (extra completion): verbs and flags by itself, and what may
stand behind them from here. Nothing is imported of it but where a shell asks, by its variable
_ARGCOMPLETE; without it nothing is completed and nothing breaks.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from cero_rl.config import Config
from cero_rl.config.base import kinds_of
from cero_rl.config.hints import sections_of
from cero_rl.config.recipes import all_recipes
from cero_rl.errors import ConfigError
from cero_rl.scheduler.registry import SCHEDULER_NAMES
from cero_rl.scheduler.simulation import make_suites

Words = Callable[..., list[str]]
_NAMES = {"scheduler.name": SCHEDULER_NAMES}  # a key of free text that knows what it may be


def complete(parser: argparse.ArgumentParser) -> None:
    """Answer a shell that asks, and end; return where none does."""
    if "_ARGCOMPLETE" not in os.environ:
        return
    try:
        from argcomplete import autocomplete
        from argcomplete.completers import FilesCompleter
    except ModuleNotFoundError:
        raise SystemExit(1) from None  # a shell that was told of it, an environment without it
    files = FilesCompleter()
    for name, own in _verbs(parser):
        if name == "train":
            _settings_anywhere(own)
        for action in own._actions:
            if (words := _words(name, action, files)) is not None:
                action.completer = words  # pyright: ignore[reportAttributeAccessIssue]
    autocomplete(parser)


def _verbs(parser: argparse.ArgumentParser, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every parser with the words that lead to it."""
    yield name, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, own in action.choices.items():
                yield from _verbs(own, f"{name} {word}".strip())


def _settings_anywhere(train: argparse.ArgumentParser) -> None:
    """The words KEY=VALUE of `cero-rl train`, which are flags before they are parsed."""
    train.add_argument("settings", nargs="*")


def _words(verb: str, action: argparse.Action, files: Words) -> Words | None:
    if action.dest in ("overrides", "settings"):
        return lambda prefix, **_: settings(prefix)
    if verb in ("recipes show", "recipes copy") and action.dest == "name":
        return lambda **_: recipe_names()
    if verb == "train" and action.dest == "config":
        return lambda prefix, **more: [*recipe_names(), *files(prefix, **more)]
    if verb == "simulate" and action.dest == "suite":
        return lambda **_: list(make_suites())
    return None


def recipe_names() -> list[str]:
    try:
        return [one.name for one in all_recipes()]
    except ConfigError:  # none ship with this package
        return []


def settings(prefix: str) -> list[str]:
    """KEY= for every key of the configuration; once a key stands there, its values where they are
    names."""
    key, equals, _ = prefix.partition("=")
    if not equals:
        return [f"{name}=" for name, _ in _keys(Config)]
    values = _NAMES.get(key) or _values(dict(_keys(Config)).get(key))
    return [f"{key}={value}" for value in values]


def _keys(model: type[BaseModel], before: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, its type), the sections opened."""
    for name, field in model.model_fields.items():
        below = sections_of(field.annotation)
        for section in below:
            yield from _keys(section, f"{before}{name}.")
        if not below:
            yield before + name, field.annotation


def _values(annotation: Any) -> list[str]:
    found: list[str] = []
    for kind in kinds_of(annotation):
        if get_origin(kind) is Literal:
            found += [str(value) for value in get_args(kind)]
        elif kind is bool:
            found += ["true", "false"]
    return found
