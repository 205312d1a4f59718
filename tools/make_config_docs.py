"""Write docs/configuration.md, every configuration key with type, default and meaning, and
recipes/schema.json, the same for editors; both read from the pydantic models.

In: `cero_rl.config.Config`. Out: the two files (`make docs`). `--check` writes nothing and exits 1
when one is old.
"""

from __future__ import annotations

import json
import sys
import typing
from pathlib import Path
from typing import Any

from cero_rl.commands import schema
from cero_rl.config.learner import PRESETS, LearnerConfig
from cero_rl.config.root import Config, Section

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "configuration.md"
SCHEMA = ROOT / "recipes" / "schema.json"
HEAD = """\
# Configuration

Written by `make docs` from `cero_rl/config/root.py`; do not edit by hand.

A run is one YAML file plus any number of `--set section.key=value`. Unknown keys are errors, and
the message names the nearest known key. `python -m cero_rl validate --config FILE` checks a file
without starting anything. The resolved configuration is saved as `config.resolved.yaml` in the run
directory.

Behind `--set`, a key of type string takes the text exactly as typed: 12, yes, "You are: x",
"Solve #1 first", with blanks in front and quotes. A backslash and an n stay two characters (LaTeX
has \\neq); for a line break write `$'first\\nsecond'` in bash, or use the YAML file. `null` (or
`None`) unsets a key that may be null. All other types are read as YAML.

In every key that is a path, and in paths on the command line, a leading `~` and `$NAME` or
`${NAME}` stand for the home directory and the variable; a variable that is not set, or empty, is an
error. YAML anchors and merge keys (`<<: *name`) work; keys of the top level that begin with `x-` or
`.` hold anchors and are no settings.
"""
UNSAID = (2**53, 1e9)  # largest count and longest wait: nobody comes near them
BOUNDS = {
    "minimum": ">= {}",
    "exclusiveMinimum": "> {}",
    "maximum": "<= {}",
    "exclusiveMaximum": "< {}",
}


def type_text(schema: dict[str, Any]) -> str:
    """A JSON-schema node as words: 'integer >= 1 or null', 'one of `a`, `b`', 'list of number >
    0'."""
    if "anyOf" in schema:
        return " or ".join(type_text(option) for option in schema["anyOf"])
    if "enum" in schema:
        words = (value if isinstance(value, str) else json.dumps(value) for value in schema["enum"])
        return "one of " + ", ".join(f"`{word}`" for word in words)
    if "$ref" in schema:
        return "mapping, see below"
    if schema.get("type") == "array":
        items = schema.get("prefixItems")
        return (
            f"{len(items)} values: {type_text(items[0])}"
            if items
            else f"list of {type_text(schema['items'])}"
        )
    bounds = [
        text.format(schema[key])
        for key, text in BOUNDS.items()
        if key in schema and schema[key] not in UNSAID
    ]
    return " ".join([str(schema.get("type", "any")), ", ".join(bounds)]).strip()


def default_text(schema: dict[str, Any]) -> str:
    if "default" not in schema:
        return "**required**"
    value = schema["default"]
    words = {None: "null", True: "true", False: "false", "": '""'}
    text = words[value] if isinstance(value, str | bool | None) and value in words else str(value)
    return f"`{text}`"


def rows(prefix: str, section: type[Section], names: list[str]) -> list[str]:
    properties = section.model_json_schema()["properties"]
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name in names:
        schema = properties[name]
        meaning = str(schema.get("description", "")).replace("|", "\\|")
        lines.append(
            f"| `{prefix}{name}` | {type_text(schema)} | {default_text(schema)} | {meaning} |"
        )
    return lines


def sections_of(model: type[Section]) -> dict[str, type[Section]]:
    return {
        name: field.annotation
        for name, field in model.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
    }


def entries_of(model: type[Section]) -> dict[str, type[Section]]:
    """Keys that hold a list of sections."""
    return {
        name: typing.get_args(field.annotation)[0]
        for name, field in model.model_fields.items()
        if typing.get_origin(field.annotation) is tuple
        and isinstance(typing.get_args(field.annotation)[0], type)
        and issubclass(typing.get_args(field.annotation)[0], Section)
    }


def about(section: type[Section]) -> list[str]:
    written = section.__doc__ and section.__doc__ != Section.__doc__
    return [" ".join(section.__doc__.split()), ""] if written and section.__doc__ else []


def render() -> str:
    """The whole page."""
    sections = sections_of(Config)
    lines = [
        HEAD,
        "## Run",
        "",
        *rows("", Config, [name for name in Config.model_fields if name not in sections]),
    ]
    for name, section in sections.items():
        lines += ["", f"## {name}", "", *about(section)]
        inner = sections_of(section)
        lines += rows(
            f"{name}.", section, [key for key in section.model_fields if key not in inner]
        )
        entries = entries_of(section)
        for key, part in {**inner, **entries}.items():
            lines += [
                "",
                f"### {name}.{key}",
                "",
                *about(part),
                *rows("" if key in entries else f"{name}.{key}.", part, list(part.model_fields)),
            ]
    keys = list(dict.fromkeys(key for preset in PRESETS.values() for key in preset))
    whole = {
        name: LearnerConfig.model_validate({"algorithm": name}).model_dump() for name in PRESETS
    }
    lines += [
        "",
        "## Presets of learner.algorithm",
        "",
        "A key that the file gives itself wins over the preset.",
        "",
    ]
    lines += [f"| algorithm | {' | '.join(keys)} |", "|---" * (len(keys) + 1) + "|"]
    lines += [
        f"| `{name}` | {' | '.join(str(values[key]) for key in keys)} |"
        for name, values in whole.items()
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    written = {PAGE: render, SCHEMA: schema.text}
    if "--check" in sys.argv[1:]:
        old = [
            path.name
            for path, text in written.items()
            if not path.exists() or path.read_text(encoding="utf-8") != text()
        ]
        for name in old:
            print(f"{name} is not what cero_rl/config/ says; run make docs", file=sys.stderr)
        return 1 if old else 0
    for path, text in written.items():
        path.write_text(text(), encoding="utf-8")
        print(f"wrote {path.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
