"""YAML file + dotted overrides -> Config, with one-line errors: key path, value found, what is allowed, nearest name.

Inputs: a path and `a.b=c` strings. Output: a validated `Config`. Raises ConfigError (exit code 2). Imports no torch.
"""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from cero_rl.config import Config
from cero_rl.errors import ConfigError

_SECRET = re.compile(r"(hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|AKIA[0-9A-Z]{16}|ghp_[A-Za-z0-9]{20,})")


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice and reads 1e-4 as a number."""


def _mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: dict[Any, int] = {}
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        line = key_node.start_mark.line + 1
        if isinstance(key, list | dict | set):
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is not a name", key_node.start_mark)
        if key in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"key {key!r} stands twice (lines {seen[key]} and {line}); keep one", key_node.start_mark
            )
        seen[key] = line
    return loader.construct_mapping(node, deep=True)


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:\d[\d_]*\.?[\d_]*|\.[\d_]+)(?:[eE][-+]?\d+)$|^[-+]?(?:\d[\d_]*\.[\d_]*|\.[\d_]+)$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)


def _parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}:{mark.line + 1}" if mark is not None else where
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        if "'\\t'" in problem:
            problem += " (a tab; indent with spaces)"
        raise ConfigError(f"{place}: not valid YAML: {problem}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise ConfigError(f"--config: {path} does not exist; give the path of a YAML file, e.g. recipes/quickstart_cpu.yaml")
    if path.is_dir():
        raise ConfigError(f"--config: {path} is a directory; give a YAML file")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"--config: {path} is not UTF-8 text; give a YAML file") from None
    data = _parse_yaml(text, str(path))
    if data is None:
        raise ConfigError(f"--config: {path} is empty; it needs at least model, data, scheduler and budget")
    if not isinstance(data, dict):
        raise ConfigError(f"--config: {path} holds a {type(data).__name__}, wanted a mapping of sections")
    return data


def apply_override(data: dict[str, Any], override: str) -> None:
    """Apply one `a.b=c`; the value is read as YAML, so numbers, lists, true and null mean what they mean in the file."""
    key, separator, raw = override.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"--set: got {override!r}, wanted key.path=value, e.g. --set scheduler.name=uniform")
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
        options = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
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
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel) and unknown in field.annotation.model_fields
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
        reason = str(error["ctx"]["error"])
        return f"{key}: {reason}" if key else reason
    message = str(error["msg"])
    message = message[0].lower() + message[1:]
    return f"{key}: got {error['input']!r}; {message}"


def build_config(data: dict[str, Any], where: str) -> Config:
    try:
        return Config.model_validate(data)
    except ValidationError as failure:
        lines = [_explain(error) for error in failure.errors(include_url=False)]
        raise ConfigError(f"{where}: " + (lines[0] if len(lines) == 1 else f"{len(lines)} problems\n  " + "\n  ".join(lines))) from None


def _refuse_secrets(data: Any, path: str = "") -> None:
    if isinstance(data, dict):
        for key, value in data.items():
            _refuse_secrets(value, f"{path}.{key}" if path else str(key))
    elif isinstance(data, list):
        for index, value in enumerate(data):
            _refuse_secrets(value, f"{path}.{index}")
    elif isinstance(data, str) and _SECRET.search(data):
        raise ConfigError(f"{path}: looks like a secret key; keep secrets in environment variables, never in a configuration")


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Read, override, validate. Raises ConfigError naming the file, the key path, what was found and what is wanted."""
    data = read_yaml(Path(path))
    for override in overrides:
        apply_override(data, override)
    _refuse_secrets(data)
    return build_config(data, str(path))


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML that `load_config` reads back to an equal Config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
