"""What the trainers of bench_peers.py are compared on: models, prompts, sizes, and the settings
that each contender is tried with.

Models and prompts are made once, in a working directory. A response has its full length: the end
token is put out of the vocabulary's reach on both sides, and rewards are such that no group is
without signal. But for shape 1m_as_it_is: there responses end where the model ends them, and are
right where they are the answer. Prompts are the same text for both.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SMOLLM2 = ROOT / ".cache" / "smollm2_135m"
WORDS = 8000  # of the 14m model's vocabulary
SYSTEM = "Answer with the final number only."


@dataclass(frozen=True)
class Contender:
    """A trainer with the settings it is tried with."""

    trainer: str  # cero_rl or trl
    label: str
    settings: dict[str, Any]


@dataclass(frozen=True)
class Shape:
    name: str
    prompts: int  # of a step
    rollouts: int  # of a prompt
    prompt_tokens: int  # of the longest
    response_tokens: int
    dtype: str
    learning_rate: float
    steps: int  # of one alternation
    contenders: tuple[Contender, ...]
    as_it_is: bool = False  # its own ends and its own rewards

    @property
    def model(self) -> str:
        return self.name.partition("_")[0]

    @property
    def reward(self) -> str:
        return "exact" if self.as_it_is else "half"


def cero(label: str, **settings: Any) -> Contender:
    """Keys with two underscores for the dot."""
    return Contender("cero_rl", label, {key.replace("__", "."): v for key, v in settings.items()})


def trl(batch: int, of: int, label: str = "", **settings: Any) -> Contender:
    """`of` rollouts a step, `batch` in a forward and backward pass."""
    sizes = {
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": of // batch,
        "gradient_checkpointing": False,
    }
    return Contender("trl", f"batch {batch}{label}", {**sizes, **settings})


SMALL = (
    cero("ZeRO-3", zero__stage=3, learner__max_micro_batch_tokens=16384),
    cero("ZeRO off", zero__stage=0, learner__max_micro_batch_tokens=16384),
    cero("ZeRO off, micro-batch 4096", zero__stage=0, learner__max_micro_batch_tokens=4096),
    cero(
        "ZeRO off, prefix shared",
        zero__stage=0,
        learner__max_micro_batch_tokens=16384,
        learner__shared_prefix="true",
    ),
    trl(64, 1024),
    trl(256, 1024),
    trl(1024, 1024),
    trl(256, 1024, ", generation 256", generation_batch_size=256),
    trl(256, 1024, ", static cache", cache_implementation="static"),
)
MIDDLE = (
    cero("ZeRO-3", zero__stage=3, learner__max_micro_batch_tokens=8192),
    cero("ZeRO off", zero__stage=0, learner__max_micro_batch_tokens=8192),
    cero("ZeRO off, micro-batch 2048", zero__stage=0, learner__max_micro_batch_tokens=2048),
    trl(8, 256),
    trl(32, 256),
    trl(128, 256),
    trl(32, 256, ", static cache", cache_implementation="static"),
)
LARGE = (
    cero("ZeRO-3", zero__stage=3, learner__max_micro_batch_tokens=1024),
    cero("ZeRO off", zero__stage=0, learner__max_micro_batch_tokens=1024),
    cero(
        "ZeRO-3, vLLM", zero__stage=3, learner__max_micro_batch_tokens=1024, rollout__engine="vllm"
    ),
    trl(8, 64),
    trl(32, 64),
    trl(8, 64, ", float32 weights", model_init_kwargs={"dtype": "float32"}),
    trl(8, 64, ", checkpointing", gradient_checkpointing=True),
    trl(8, 64, ", static cache", cache_implementation="static"),
)
SHAPES = {
    shape.name: shape
    for shape in (
        Shape("1m", 128, 8, 24, 12, "float32", 1e-5, 6, SMALL),
        Shape("1m_as_it_is", 128, 8, 24, 12, "float32", 1e-5, 6, SMALL, as_it_is=True),
        Shape("14m", 32, 8, 128, 128, "float32", 1e-5, 1, MIDDLE),
        Shape("135m", 8, 8, 64, 48, "bfloat16", 1e-6, 1, LARGE),
    )
}


def prepare(shape: Shape, work: Path) -> tuple[Path, Path]:
    """(model directory, prompts as jsonl), made where they are missing."""
    data = work / f"{shape.model}.jsonl"
    makers = {"1m": _digits, "14m": _words, "135m": _sums}
    return makers[shape.model](data, work), data


def _write(data: Path, prompts: list[str], answers: list[str] | None = None) -> None:
    pairs = zip(prompts, answers or ["-"] * len(prompts), strict=True)
    data.write_text("".join(json.dumps({"prompt": p, "answer": a}) + "\n" for p, a in pairs))


def _digits(data: Path, work: Path) -> Path:
    """The quickstart's model and the first 512 prompts of its pool."""
    lines = (ROOT / "recipes/assets/digits_unfiltered.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines[:512]]
    _write(data, [row["prompt"] for row in rows], [row["answer"] for row in rows])
    return ROOT / "recipes/assets/tiny_digits"


def _words(data: Path, work: Path) -> Path:
    """A Qwen3 of 14M random parameters, and prompts of 128 random words of its vocabulary."""
    rng = random.Random(0)
    words = [f"w{number}" for number in range(WORDS)]
    _write(data, [" ".join(rng.choices(words, k=128)) for _ in range(128)])
    model = work / "qwen3_14m"
    if not (model / "config.json").exists():
        from tiny_models import EOS, PAD, Size, make_model
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        ids = {word: index for index, word in enumerate(["<pad>", "<eos>", *words])}
        assert (ids["<pad>"], ids["<eos>"]) == (PAD, EOS)
        tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<pad>"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>", model_max_length=512
        ).save_pretrained(model)
        made = make_model(Size(384, 6, 12), len(ids), seed=0, context=512)
        made.save_pretrained(model)
    return model


def _sums(data: Path, work: Path) -> Path:
    """SmolLM2-135M-Instruct, and sums in its chat template."""
    if not (SMOLLM2 / "config.json").exists():
        subprocess.run([sys.executable, str(ROOT / "tools/make_smollm2.py")], check=True)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(SMOLLM2, trust_remote_code=False)
    lines = (ROOT / "recipes/assets/easy_sums.jsonl").read_text().splitlines()
    texts = []
    for line in lines:
        messages = [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": json.loads(line)["prompt"]},
        ]
        texts.append(
            str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        )
    _write(data, texts)
    return SMOLLM2
