"""Does `pip install cero_rl[EXTRA]` resolve from the package index today? The base and every extra
of pyproject.toml, each for the oldest Python that is supported, and all together but vLLM under
requirements/lock.txt.

`make extras` prints a line for each; exit code 1, with the resolver's reason, where one fails.

uv resolves, nothing is installed. vLLM pins a torch of its own, so the lock does not speak of it.
"""

from __future__ import annotations

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


def resolve(extras: Sequence[str], *options: str) -> tuple[dict[str, str], str, float]:
    """(package -> version, what went wrong, seconds)"""
    named = [word for extra in extras for word in ("--extra", extra)]
    command = [sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml", *named, *options]
    command += ["--no-annotate", "--no-header", "--color", "never", "-q"]
    begun = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_SECONDS)
    found = dict(re.findall(r"(?m)^([\w.-]+)==(\S+)", done.stdout))
    wrong = done.stderr.strip() if done.returncode else ""
    return found, wrong, time.monotonic() - begun


def main() -> int:
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
        failed = 0
        for (name, _, _), (found, wrong, seconds) in zip(cases, answers):
            main_ones = [f"{p} {found[p]}" for p in SHOWN if p in found][:2]
            said = f"{len(found):3} packages  {', '.join(main_ones)}" if not wrong else "FAILED"
            print(f"{name:22} {seconds:5.1f} s  {said}", flush=True)
            if wrong:
                failed += 1
                print(wrong, file=sys.stderr)
    print(f"extras: {len(cases) - failed} of {len(cases)} resolve")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
