"""The recipes that ship: where they lie, what each says of itself, and the files beside it.

They are `recipes/` of a checkout and, in an installed package, the same folder inside it (setup.py
puts it there).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from cero_rl.errors import ConfigError

_PACKAGE = Path(__file__).resolve().parent.parent
_HEAD = re.compile(r"# Hardware:(.*?)# Command", re.DOTALL)
SCHEMA = "schema.json"


@dataclass(frozen=True)
class Recipe:
    """One of them. `files`: what its keys name below recipes/, and the folder of each."""

    name: str
    path: Path
    text: str

    @property
    def hardware(self) -> str:
        """What its head says that it needs, the first sentence of it."""
        found = _HEAD.search(self.text)
        words = " ".join(found[1].replace("\n#", " ").split()) if found else "not said"
        return re.split(r"\. | \(|\.$", words)[0]

    @property
    def about(self) -> dict[str, str]:
        """Model, data, allocator and budget, in the words of the file."""
        data = yaml.safe_load(self.text)
        scheduler = data["scheduler"]
        return {
            "model": str(data["model"]["path"]),
            "data": str(data["data"]["source"]),
            "scheduler": str(scheduler.get("preset") or scheduler.get("name", "cero")),
            "rollouts": str(data["budget"]["total_rollouts"]),
        }

    def files(self) -> Iterator[tuple[str, Path]]:
        """(path as the recipe writes it, where it lies) of every file that it reads and that
        ships."""
        for name in sorted(set(re.findall(r"recipes/(assets/[\w./-]+)", self.text))):
            place = self.path.parent / name
            for file in sorted(place.rglob("*")) if place.is_dir() else [place]:
                if file.is_file():
                    yield f"recipes/{file.relative_to(self.path.parent).as_posix()}", file


def folder() -> Path:
    """Raises ConfigError where none ship."""
    for place in (_PACKAGE / "recipes", _PACKAGE.parent / "recipes"):
        if (place / "quickstart_cpu.yaml").is_file():
            return place
    raise ConfigError("the recipes are not installed with this package; install it again")


def all_recipes() -> list[Recipe]:
    return [
        Recipe(path.stem, path, path.read_text(encoding="utf-8"))
        for path in sorted(folder().glob("*.yaml"))
    ]


def recipe(name: str) -> Recipe:
    """By name. Raises ConfigError for one that does not ship."""
    known = {one.name: one for one in all_recipes()}
    if name not in known:
        raise ConfigError(f"recipe {name!r}: there is none of this name; {', '.join(known)}")
    return known[name]
