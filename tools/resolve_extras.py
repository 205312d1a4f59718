"""Does `pip install cero_rl[EXTRA]` resolve from the package index today? The base and every extra
of pyproject.toml, each for the oldest Python that is supported, and all together but vLLM under
requirements/lock.txt.

`make extras` prints a line for each; exit code 1, with the resolver's reason, where one fails. With
`--if-reachable` an index that cannot be reached is said and is no failure.

uv resolves, nothing is installed; it is told the index and the certificates that pip is configured
with. vLLM pins a torch of its own, so the lock does not speak of it.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements" / "lock.txt"
SHOWN = ("torch", "deepspeed", "transformers", "vllm", "peft", "numpy")  # first two that it has
LIMIT_SECONDS = 300
UNREACHABLE = re.compile(r"Failed to fetch|error sending request|dns error", re.IGNORECASE)
PIPS = {"index-url": "UV_DEFAULT_INDEX", "cert": "SSL_CERT_FILE"}  # pip's key -> uv's variable


def environment() -> dict[str, str]:
    """This one's, with what pip's files and variables say of the index."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True
    ).stdout
    settings = dict(re.findall(r"(?m)^(?:global|install|:env:)\.([\w-]+)='(.*)'$", listed))
    told = {name: settings[key] for key, name in PIPS.items() if key in settings}
    return {**told, **os.environ}


def resolve(extras: Sequence[str], *options: str) -> tuple[dict[str, str], str, float]:
    """(package -> version, what went wrong, seconds)"""
    named = [word for extra in extras for word in ("--extra", extra)]
    command = [sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml", *named, *options]
    command += ["--no-annotate", "--no-header", "--color", "never", "-q"]
    begun = time.monotonic()
    done = subprocess.run(
        command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=LIMIT_SECONDS
    )
    found = dict(re.findall(r"(?m)^([\w.-]+)==(\S+)", done.stdout))
    wrong = done.stderr.strip() if done.returncode else ""
    return found, wrong, time.monotonic() - begun


ENVIRONMENT = environment()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n\n")[0], allow_abbrev=False
    )
    parser.add_argument(
        "--if-reachable", action="store_true", help="an index out of reach is no failure"
    )
    lenient = parser.parse_args().if_reachable
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = list(project["optional-dependencies"])
    locked = [extra for extra in extras if extra != "vllm"]
    oldest = ["--python-version", re.sub(r"[^0-9.]", "", project["requires-python"])]
    cases: list[tuple[str, list[str], list[str]]] = [
        ("cero_rl", [], oldest),
        *((f"cero_rl[{extra}]", [extra], oldest) for extra in extras),
        ("all but vllm, locked", locked, ["-c", str(LOCK), *oldest]),
    ]
    with ThreadPoolExecutor(4) as pool:  # most of it is waiting for the index
        answers = pool.map(lambda case: resolve(case[1], *case[2]), cases)
        failed = unreached = 0
        for (name, _, _), (found, wrong, seconds) in zip(cases, answers):
            main_ones = [f"{p} {found[p]}" for p in SHOWN if p in found][:2]
            said = f"{len(found):3} packages  {', '.join(main_ones)}" if not wrong else "FAILED"
            print(f"{name:22} {seconds:5.1f} s  {said}", flush=True)
            if wrong:
                failed += 1
                unreached += bool(UNREACHABLE.search(wrong))
                print(wrong, file=sys.stderr)
    print(f"extras: {len(cases) - failed} of {len(cases)} resolve")
    if unreached:
        print(f"extras: {unreached} were not resolved: the package index is out of uv's reach")
    return 1 if failed > (unreached if lenient else 0) else 0


if __name__ == "__main__":
    sys.exit(main())
