"""What the documentation site needs beyond docs/ (a hook of mkdocs, named in mkdocs.yml): the pages
at the repository's root, the files that pages link to, notebooks as pages, and the decisions in the
navigation.

The Markdown stays as it is read in a repository: links are those of files, `../README.md` included,
and are turned here. In: mkdocs' configuration, files and pages. Out: the same with those added.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
OUTSIDE = "repository"  # the site's folder for what lies outside docs/
LINK = re.compile(r"(\]\()([^)#\s:]+)((?:#[^)\s]*)?\))")
FENCE = re.compile(r"(?ms)^(```.*?^```)$")
ITEM = re.compile(r"(- |\d+\. )")
FETCHED = re.compile(r"<(?:script|link|img|iframe)[^>]* (?:src|href)=\"?(?:https?:)?//[^>]*>")
LICENSE = ROOT / "LICENSE"


def source_of(page: str) -> Path:
    """The file behind a page of the navigation or the site."""
    return Path(os.path.normpath(DOCS / page))


def uri_of(path: Path) -> str:
    """Where a file of the repository stands in the site; a notebook stands as its page."""
    inside = path.is_relative_to(DOCS)
    uri = path.relative_to(DOCS if inside else ROOT).as_posix()
    if path.suffix == ".ipynb":
        uri = uri.removesuffix(".ipynb") + ".md"
    return uri if inside else f"{OUTSIDE}/{uri.lower() if path.suffix == '.md' else uri}"


def turned(text: str, source: Path) -> str:
    """A page's text with its links as the site has them; code stays as it is."""
    here = Path(uri_of(source)).parent

    def link(found: re.Match[str]) -> str:
        target = Path(os.path.normpath(source.parent / found[2]))
        if not target.is_file():
            return found[0]  # for mkdocs to complain of
        return found[1] + Path(os.path.relpath(uri_of(target), here)).as_posix() + found[3]

    parts = FENCE.split(text)
    return "".join(
        part if part.startswith("```") else spaced(LINK.sub(link, part)) for part in parts
    )


def spaced(text: str) -> str:
    """A blank line before a list that follows a paragraph at once: Python-Markdown wants one."""
    lines: list[str] = []
    for line in text.split("\n"):
        before = lines[-1] if lines else ""
        if ITEM.match(line) and before and not before.startswith(" ") and not ITEM.match(before):
            lines.append("")
        lines.append(line)
    return "\n".join(lines)


def linked(text: str, source: Path) -> set[Path]:
    """The files outside docs/ that a page links to."""
    targets = (Path(os.path.normpath(source.parent / m[2])) for m in LINK.finditer(text))
    return {path for path in targets if path.is_file() and not path.is_relative_to(DOCS)}


def page_of(notebook: Path) -> str:
    """A notebook as Markdown: its text, its code, and what the code printed."""
    parts = []
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts.append(f"```python\n{source}\n```" if cell["cell_type"] == "code" else source)
        for output in cell.get("outputs", []):
            said = output.get("text") or output.get("data", {}).get("text/plain", [])
            parts.append(f"```text\n{''.join(said).rstrip()}\n```")
    parts.insert(1, f"The notebook itself: [{notebook.name}](../{OUTSIDE}/{notebook.name}).")
    return "\n\n".join(parts) + "\n"


# --- what mkdocs calls


def on_config(config: Any) -> Any:
    """The navigation in the site's own names, `decisions/*` spelled out."""

    def named(entry: Any) -> Any:
        if isinstance(entry, dict):
            return {title: named(inner) for title, inner in entry.items()}
        if isinstance(entry, list):
            return [named(inner) for inner in entry]
        if "*" in entry:
            return [uri_of(path) for path in sorted(DOCS.glob(entry + ".md"))]
        return uri_of(source_of(entry))

    config.nav = named(config.nav)
    return config


def on_files(files: Any, config: Any) -> Any:
    from mkdocs.structure.files import File  # pyright: ignore[reportMissingImports]

    roots = {name for name in nav_entries() if name.startswith("../")}
    outside = {source_of(name) for name in roots} | {LICENSE}
    for page in [*outside, *DOCS.rglob("*.md")]:
        outside |= linked(page.read_text(encoding="utf-8"), page)
    for path in sorted(outside):
        content = path.read_text(encoding="utf-8")
        files.append(File.generated(config, uri_of(path), content=content))
    for notebook in sorted(DOCS.rglob("*.ipynb")):
        files.append(File.generated(config, uri_of(notebook), content=page_of(notebook)))
        raw = notebook.read_text(encoding="utf-8")
        files.append(File.generated(config, f"{OUTSIDE}/{notebook.name}", content=raw))
        files.remove(files.get_file_from_path(notebook.relative_to(DOCS).as_posix()))
    return files


def on_page_markdown(text: str, page: Any, config: Any, files: Any) -> str:
    uri = page.file.src_uri
    sources = {uri_of(path): path for path in ROOT.glob("*.md")}
    return turned(text, sources.get(uri) or DOCS / uri)


def on_post_page(html: str, page: Any, config: Any) -> str:
    """A page that a reader without a network could not see whole is an error."""
    from mkdocs.exceptions import PluginError  # pyright: ignore[reportMissingImports]

    if fetched := FETCHED.search(html):
        raise PluginError(f"{page.file.src_uri}: fetches {fetched[0]}; keep the file in docs/")
    return html


def nav_entries() -> list[str]:
    """The pages that mkdocs.yml names, as they stand there."""
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    entry = r"(?m)^ +- (?:[^:\n]*: |\"[^\"]*\": )?([^\s:]+)$"
    return re.findall(entry, text.partition("\nnav:")[2])
