"""`cero-rl schema`: the JSON schema of a configuration, for editors and other programs."""

from __future__ import annotations

import argparse
import json
from typing import Any

from cero_rl.commands.answers import add_json, answer
from cero_rl.commands.common import add_debug
from cero_rl.config import Config

HELP = "the JSON schema of a configuration, for editors that complete and check YAML"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)  # it says nothing else; its errors are JSON then too
    add_debug(parser)


def _tree() -> dict[str, Any]:
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return schema | Config.model_json_schema()


def text() -> str:
    """The schema as it ships in recipes/schema.json."""
    return json.dumps(_tree(), indent=1) + "\n"


def run(arguments: argparse.Namespace) -> int:
    if arguments.json:
        answer(arguments, **_tree())
    else:
        print(text(), end="")
    return 0
