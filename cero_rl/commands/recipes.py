"""`cero-rl recipes`: the recipes that ship, listed, shown, or copied to start from."""

from __future__ import annotations

import argparse
from pathlib import Path

from cero_rl.commands.answers import add_json, answer
from cero_rl.commands.common import add_debug
from cero_rl.config.paths import path_argument
from cero_rl.config.recipes import SCHEMA, Recipe, all_recipes, folder, recipe
from cero_rl.errors import ConfigError

HELP = "the recipes that ship: list them, show one, copy one to change it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", allow_abbrev=False, help="name, hardware, model, budget")
    show = actions.add_parser("show", allow_abbrev=False, help="print the file")
    copy = actions.add_parser(
        "copy", allow_abbrev=False, help="copy the file, and the data and model that it ships with"
    )
    copy.add_argument(
        "--to",
        type=path_argument,
        default=Path(),
        metavar="DIR",
        help="default: here, where its paths lead to what is copied",
    )
    for one in (show, copy):
        one.add_argument("name", metavar="NAME")
    for one in (listing, show, copy):
        add_json(one)
        add_debug(one)


def run(arguments: argparse.Namespace) -> int:
    if arguments.action == "list":
        _list(arguments, all_recipes())
    elif arguments.action == "show":
        chosen = recipe(arguments.name)
        answer(arguments, name=chosen.name, path=str(chosen.path), text=chosen.text)
        print(chosen.text, end="")
    else:
        _copy(arguments, recipe(arguments.name), arguments.to)
    return 0


def _list(arguments: argparse.Namespace, recipes: list[Recipe]) -> None:
    width = max(len(one.name) for one in recipes)
    listed = [{"name": one.name, "hardware": one.hardware, **one.about} for one in recipes]
    answer(arguments, recipes=listed)
    for about in listed:
        print(f"{about['name']:<{width}}  {about['hardware']}")
        print(
            f"{'':<{width}}  {about['model']}, {about['scheduler']}, "
            f"{int(about['rollouts']):,} rollouts"
        )


def _copy(arguments: argparse.Namespace, chosen: Recipe, to: Path) -> None:
    """Raises ConfigError before anything is written where a file of another content is in the
    way."""
    wanted = [(f"{chosen.name}.yaml", chosen.path), (SCHEMA, folder() / SCHEMA), *chosen.files()]
    missing = []
    for name, source in wanted:
        target = to / name
        if not target.exists():
            missing.append((target, source))
        elif not target.is_file() or target.read_bytes() != source.read_bytes():
            raise ConfigError(
                f"{target}: there is another file of this name; move it, or choose another --to"
            )
    for target, source in missing:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
        except OSError as error:
            raise ConfigError(
                f"{target}: cannot be written ({error.strerror}); choose another --to"
            ) from None
    written = [str(target) for target, _ in missing]
    answer(arguments, config=str(to / f"{chosen.name}.yaml"), written=written)
    size = sum(source.stat().st_size for _, source in missing)
    print(f"{to / chosen.name}.yaml, {len(missing)} files written, {size / 1e6:.1f} MB")
    at = "" if to == Path() else f"cd {to} && "
    print(f"next: {at}cero-rl train {chosen.name}.yaml")
