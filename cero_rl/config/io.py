"""YAML file + dotted overrides -> Config, with one-line errors: key path, value found, what is
allowed, nearest name.

Inputs: a path and `a.b=c` strings. Output: a validated `Config`. Raises ConfigError (exit code 2).
Imports no torch.
"""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from cero_rl import redact
from cero_rl.config.root import Config
from cero_rl.errors import ConfigError

_MOST_VALUES = 10_000  # a file of a few aliases can stand for billions


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice and reads 1e-4 as a number."""


def _mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: dict[Any, int] = {}
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        line = key_node.start_mark.line + 1
        if isinstance(key, list | dict | set):
            raise yaml.constructor.ConstructorError(
                None, None, f"key {key!r} is not a name", key_node.start_mark
            )
        if key in seen:
            raise yaml.constructor.ConstructorError(
                None,
                None,
                f"key {key!r} stands twice (lines {seen[key]} and {line}); keep one",
                key_node.start_mark,
            )
        seen[key] = line
    return loader.construct_mapping(node, deep=True)


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:\d[\d_]*\.?[\d_]*|\.[\d_]+)(?:[eE][-+]?\d+)$"
        r"|^[-+]?(?:\d[\d_]*\.[\d_]*|\.[\d_]+)$"
        r"|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)


def _parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except RecursionError:
        raise ConfigError(
            f"{where}: not valid YAML: nested too deeply; write plain sections"
        ) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}:{mark.line + 1}" if mark is not None else where
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        if "'\\t'" in problem:
            problem += " (a tab; indent with spaces)"
        raise ConfigError(redact.text(f"{place}: not valid YAML: {problem}")) from None


def read_yaml(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise ConfigError(
            f"--config: {path} does not exist; give the path of a YAML file, e.g. "
            "recipes/quickstart_cpu.yaml"
        )
    if path.is_dir():
        raise ConfigError(f"--config: {path} is a directory; give a YAML file")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"--config: {path} is not UTF-8 text; give a YAML file") from None
    data = _parse_yaml(text, str(path))
    if data is None:
        raise ConfigError(
            f"--config: {path} is empty; it needs at least model, data, scheduler and budget"
        )
    if not isinstance(data, dict):
        raise ConfigError(
            f"--config: {path} holds a {type(data).__name__}, wanted a mapping of sections"
        )
    return data


def apply_override(data: dict[str, Any], override: str) -> None:
    """Apply one `a.b=c`; the value is read as YAML, so numbers, lists, true and null mean what they
    mean in the file."""
    key, separator, raw = override.partition("=")
    if not separator or not key.strip():
        raise ConfigError(
            f"--set: got {redact.text(override)!r}, wanted key.path=value, e.g. --set "
            "scheduler.name=uniform"
        )
    value = _parse_yaml(raw, f"--set {key}") if raw.strip() else None
    *parents, last = key.strip().split(".")
    node = data
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"--set {key}: {parent} is not a section")
        node = child
    node[last] = value


def _section_at(path: Sequence[Any]) -> type[BaseModel]:
    model: type[BaseModel] = Config
    for part in path:
        field = model.model_fields.get(str(part))
        annotation = field.annotation if field else None
        options = (
            typing.get_args(annotation)
            if isinstance(annotation, types.UnionType)
            else (annotation,)
        )
        found = [o for o in options if isinstance(o, type) and issubclass(o, BaseModel)]
        if not found:
            break
        model = found[0]
    return model


def _key_hint(unknown: str, path: Sequence[Any]) -> str:
    section = _section_at(path)
    near = difflib.get_close_matches(unknown, section.model_fields, n=1, cutoff=0.6)
    if near:
        return f"did you mean {'.'.join([*map(str, path), near[0]])}?"
    elsewhere = [
        f"{name}.{unknown}"
        for name, field in Config.model_fields.items()
        if isinstance(field.annotation, type)
        and issubclass(field.annotation, BaseModel)
        and unknown in field.annotation.model_fields
    ]
    if elsewhere:
        return f"did you mean {elsewhere[0]}?"
    return f"known keys: {', '.join(section.model_fields)}"


def _explain(error: Any) -> str:
    path, kind = list(error["loc"]), error["type"]
    key = ".".join(map(str, path))
    if kind == "extra_forbidden":
        return f"{key}: unknown key; {_key_hint(str(path[-1]), path[:-1])}"
    if kind == "missing":
        return f"{key}: missing; add it to the YAML file or pass --set {key}=VALUE"
    if kind == "value_error":
        reason = redact.text(str(error["ctx"]["error"]))
        return f"{key}: {reason}" if key else reason
    message = str(error["msg"])
    message = message[0].lower() + message[1:]
    found = repr(redact.tree(error["input"]))
    return f"{key}: got {found if len(found) <= 200 else found[:200] + '...'}; {message}"


def build_config(data: dict[str, Any], where: str) -> Config:
    try:
        return Config.model_validate(data)
    except ValidationError as failure:
        lines = [_explain(error) for error in failure.errors(include_url=False)]
        raise ConfigError(
            f"{where}: "
            + (lines[0] if len(lines) == 1 else f"{len(lines)} problems\n  " + "\n  ".join(lines))
        ) from None


def _texts(data: dict[str, Any], where: str) -> Iterator[tuple[str, str, str]]:
    """(path, key, text) of every text; also where endless settings are refused: a value is looked
    at for each place it stands in."""
    waiting: list[tuple[str, str, Any]] = [("", "", data)]
    seen = 0
    while waiting:
        path, key, value = waiting.pop()
        seen += 1
        if seen > _MOST_VALUES:
            raise ConfigError(
                f"{where}: holds more than {_MOST_VALUES} values; write plain sections"
            )
        if isinstance(value, dict):
            waiting.extend(
                (f"{path}.{name}" if path else str(name), str(name), inner)
                for name, inner in value.items()
            )
        elif isinstance(value, list):
            waiting.extend((f"{path}.{index}", key, inner) for index, inner in enumerate(value))
        elif isinstance(value, str):
            yield path, key, value


def _refuse_secrets(data: dict[str, Any], where: str) -> None:
    for path, key, text in _texts(data, where):
        if (why := redact.reason(key, text)) is not None:
            raise ConfigError(f"{path}: {why}")
        if "\0" in text:
            raise ConfigError(
                f"{path}: holds a null character, which no path or text may; write it again"
            )


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Read, override, validate. Raises ConfigError naming the file, the key path, what was found
    and what is wanted."""
    data = read_yaml(Path(path))
    for override in overrides:
        apply_override(data, override)
    _refuse_secrets(data, str(path))
    config = build_config(data, str(path))
    # after the sections' own words on their URLs, which know more
    for where, _, text in _texts(data, str(path)):
        if (why := redact.url_reason(text)) is not None:
            raise ConfigError(f"{where}: {why}")
    return config


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML that `load_config` reads back to an equal Config. Secrets,
    which it refuses, are masked."""
    return yaml.safe_dump(
        redact.tree(config.model_dump(mode="json")), sort_keys=False, allow_unicode=True
    )
