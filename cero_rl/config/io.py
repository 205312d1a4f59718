"""YAML file + dotted overrides -> Config, with one-line errors: key path, value found, what is
allowed, nearest name.

Inputs: a path and `a.b=c` strings. Output: a validated `Config`. Raises ConfigError (exit code 2).
Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from cero_rl import redact
from cero_rl.config.base import kinds_of
from cero_rl.config.hints import key_hint, section_at
from cero_rl.config.root import Config
from cero_rl.errors import ConfigError, first_line

_MOST_VALUES = 10_000  # a file of a few aliases can stand for billions
_NO_VALUE = ("null", "None", "~")  # as typed behind --set, for a key that may be null
# Keys of the file's top level that hold anchors for merge keys and are no setting.
_HOLDERS = ("x-", ".")


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice and reads 1e-4 as a number. Merge keys (`<<`) work:
    what a mapping says itself stands before what it merges."""

    def get_single_data(self) -> Any:
        node = self.get_single_node()
        if node is None:
            return None
        self._refuse_twice(node)  # before merging, which rewrites the nodes
        return self.construct_document(node)

    def _refuse_twice(self, root: yaml.Node) -> None:
        waiting, looked_at = [root], set[int]()
        while waiting:
            node = waiting.pop()
            if id(node) in looked_at:
                continue
            looked_at.add(id(node))
            if isinstance(node, yaml.SequenceNode):
                waiting.extend(node.value)
            elif isinstance(node, yaml.MappingNode):
                waiting.extend(value for _, value in node.value)
                self._refuse_twice_in(node)

    def _refuse_twice_in(self, node: yaml.MappingNode) -> None:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            merge = key_node.tag == "tag:yaml.org,2002:merge"
            key = "<<" if merge else self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if isinstance(key, list | dict | set):
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is not a name", key_node.start_mark
                )
            if key in seen:
                remedy = "write <<: [*one, *other]" if merge else "keep one"
                raise yaml.constructor.ConstructorError(
                    None,
                    None,
                    f"key {key!r} stands twice (lines {seen[key]} and {line}); {remedy}",
                    key_node.start_mark,
                )
            seen[key] = line

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > _MOST_VALUES:  # a few merges of merges can stand for billions
            raise yaml.constructor.ConstructorError(
                None, None, f"more than {_MOST_VALUES} values merged", node.start_mark
            )


def _mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    return loader.construct_mapping(node, deep=True)


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that puts in quotes what _StrictLoader would read as a number."""


# YAML 1.1 reads 010 as 8 and 1:30 as 90. Nobody means that: such a value stays text, and a number's
# key refuses it.
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_StrictLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _NUMBERS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:int",
    re.compile(r"^[-+]?(?:0|[1-9][\d_]*|0x[\da-fA-F_]+|0b[01_]+)$"),
    list("-+0123456789"),
)
for _class in (_StrictLoader, _Dumper):
    _class.add_implicit_resolver(
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
    # its constructors: a number of more than 4,300 digits, a date that is none
    except (ValueError, ArithmeticError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(
            redact.text(f"{where}: not valid YAML: a value cannot be read ({first_line(error)})")
        ) from None


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
    except OSError as error:
        raise ConfigError(
            f"--config: {path} cannot be read ({error.strerror}); check its permissions"
        ) from None
    data = _parse_yaml(text, str(path))
    if data is None:
        raise ConfigError(
            f"--config: {path} is empty; it needs at least model, data, scheduler and budget"
        )
    if not isinstance(data, dict):
        raise ConfigError(
            f"--config: {path} holds a {type(data).__name__}, wanted a mapping of sections"
        )
    return {key: value for key, value in data.items() if not str(key).startswith(_HOLDERS)}


def _takes_text(keys: Sequence[str]) -> tuple[bool, bool]:
    """Does the key at this path hold free text, and may it be null?"""
    *parents, last = keys
    model = section_at(parents)
    if model is None or (field := model.model_fields.get(last)) is None:
        return False, False
    kinds = kinds_of(field.annotation)
    return str in kinds, type(None) in kinds


def _yaml_value(keys: Sequence[str], raw: str) -> Any:
    try:
        return _parse_yaml(raw, f"--set {'.'.join(keys)}") if raw.strip() else None
    except ConfigError:
        model = section_at(keys[:-1])
        if model is not None and keys[-1] not in model.model_fields:
            return raw  # the word on the name that does not exist comes first
        raise


def _override_value(keys: Sequence[str], raw: str) -> Any:
    text, optional = _takes_text(keys)
    if optional and raw in _NO_VALUE:
        return None
    if not text:
        return _yaml_value(keys, raw)
    if raw in _NO_VALUE:
        raise ConfigError(
            f"--set {'.'.join(keys)}: got {raw}, but this key always has a text; leave the "
            "override out, or put the word in quotes into the YAML file"
        )
    return raw


def apply_override(data: dict[str, Any], override: str) -> None:
    """Apply one `a.b=c`.

    The value of a key that holds text is the text exactly as typed, blanks and all; `null` and
    `None` unset a text that may be missing. Every other value is read as YAML, so that numbers,
    lists, true and null mean what they mean in the file.
    """
    key, separator, raw = override.partition("=")
    if not separator or not key.strip():
        raise ConfigError(
            f"--set: got {redact.text(override)!r}, wanted key.path=value, e.g. --set "
            "scheduler.name=uniform"
        )
    keys = key.strip().split(".")
    value = _override_value(keys, raw)
    *parents, last = keys
    node = data
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"--set {key}: {parent} is not a section")
        node = child
    node[last] = value


def _explain(error: Any) -> str:
    path, kind = list(error["loc"]), error["type"]
    key = ".".join(map(str, path))
    if kind == "extra_forbidden":
        return f"{key}: unknown key; {key_hint(str(path[-1]), path[:-1])}"
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
        if not _is_unicode(text):
            raise ConfigError(f"{path}: holds bytes that are no UTF-8 text; write it again")


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # half of a surrogate pair, or a byte of the command line
        return False
    return True


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Read, override, validate. Raises ConfigError naming the file, the key path, what was found
    and what is wanted."""
    data = read_yaml(Path(path))
    for override in overrides:
        apply_override(data, override)
    _refuse_secrets(data, str(path))
    config = build_config(data, str(path))
    _refuse_secrets(config.model_dump(), str(path))  # what the variables in its paths stood for
    # after the sections' own words on their URLs, which know more
    for where, _, text in _texts(data, str(path)):
        if (why := redact.url_reason(text)) is not None:
            raise ConfigError(f"{where}: {why}")
    return config


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML that `load_config` reads back to an equal Config. Secrets,
    which it refuses, are masked."""
    settings = redact.tree(config.model_dump(mode="json"))
    return yaml.dump(settings, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
