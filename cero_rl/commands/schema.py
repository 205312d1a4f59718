"""`cero-rl schema`: the JSON schema of a configuration, for editors and other programs."""

from __future__ import annotations

import argparse
import json

from cero_rl.commands.common import add_debug
from cero_rl.config import Config

HELP = "the JSON schema of a configuration, for editors that complete and check YAML"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_debug(parser)


def text() -> str:
    """The schema as it ships in recipes/schema.json."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return json.dumps(schema | Config.model_json_schema(), indent=1) + "\n"


def run(arguments: argparse.Namespace) -> int:
    print(text(), end="")
    return 0
