"""The faults that `cero_rl.parity` must catch, put into a real vLLM engine one after another; what
was found of each goes to OUT/cases.json.

python tests/rollout/vllm_engine/parity_driver.py OUT_DIR MODEL_DIR
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cero_rl.config.lora import LoraConfig
from cero_rl.files.lora_adapter import adapter_config, write_adapter
from cero_rl.job.process import run_and_exit
from cero_rl.models.load import load_tokenizer
from cero_rl.parity import Answer, LlmSampler, ModelScorer, ParityOptions, check_parity
from cero_rl.rollout.engines.vllm_arguments import CPU_ENVIRONMENT, ENVIRONMENT
from cero_rl.rollout.engines.weight_files import ROOT_VARIABLE, new_label, write_weights

LORA = LoraConfig(rank=4, targets=("q_proj", "v_proj"))


class ZeroFilled(LlmSampler):
    def sample(self, *args: Any, **keys: Any) -> list[Answer]:
        return [replace(a, logps=np.zeros_like(a.logps)) for a in super().sample(*args, **keys)]


class Cooler(LlmSampler):
    """Works at another temperature than it was asked for."""

    def sample(self, *args: Any, temperature: float, **keys: Any) -> list[Answer]:
        return super().sample(*args, temperature=temperature * 0.6, **keys)


def engine(model: Path, dtype: Any, logprobs: str = "processed", **further: Any) -> Any:
    """As a trainer starts it."""
    from vllm import LLM

    return LLM(
        str(model),
        dtype=dtype,
        max_model_len=256,
        max_num_seqs=16,
        kv_cache_memory_bytes=2**26,
        enforce_eager=True,
        enable_chunked_prefill=False,
        enable_prefix_caching=True,
        generation_config="vllm",
        logprobs_mode=f"{logprobs}_logprobs",
        worker_extension_cls="cero_rl.rollout.engines.vllm_worker.WorkerExtension",
        **further,
    )


def shaken(model: Path, dtype: str, scale: float, seed: int) -> ModelScorer:
    """The model after an update that moves every weight by about `scale`."""
    return shake(ModelScorer.load(str(model), dtype=dtype), scale, seed)


def shake(scorer: ModelScorer, scale: float, seed: int) -> ModelScorer:
    generator = torch.Generator().manual_seed(seed)
    for parameter in scorer.model.parameters():
        noise = torch.randn(parameter.shape, generator=generator) * scale
        parameter.data += noise.to(parameter.dtype)
    return scorer


def weights(scorer: ModelScorer) -> Any:
    return [(name, p.data.clone()) for name, p in scorer.model.named_parameters()]


def digits_swapped(model: Path, folder: Path) -> Any:
    """The tokenizer of the model with 1 and 2 in each other's places."""
    shutil.copytree(model, folder)
    file = folder / "tokenizer.json"
    known = json.loads(file.read_text(encoding="utf-8"))
    words = known["model"]["vocab"]
    words["1"], words["2"] = words["2"], words["1"]
    file.write_text(json.dumps(known), encoding="utf-8")
    return load_tokenizer(str(folder))


def adapter_of(model: Path, folder: Path) -> Path:
    from peft import LoraConfig as Peft
    from peft import get_peft_model

    scorer = ModelScorer.load(str(model))
    peft: Any = get_peft_model(
        scorer.model, Peft(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    )
    torch.manual_seed(3)
    tensors = {
        name.replace(".default.weight", ".weight"): torch.randn_like(p) * 0.3
        for name, p in peft.named_parameters()
        if "lora_" in name
    }
    folder.mkdir()
    write_adapter(folder, tensors, adapter_config(LORA, tensors, str(model)))
    return folder


def main() -> int:
    out, model = Path(sys.argv[1]), Path(sys.argv[2])
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        **ENVIRONMENT,
        **CPU_ENVIRONMENT,
        ROOT_VARIABLE: str(out / "weights"),
    }
    found: dict[str, Any] = {}
    base = ModelScorer.load(str(model))
    policy = shaken(model, "float32", 0.02, 1)
    after = shake(shaken(model, "float32", 0.02, 1), 1e-3, 2)
    llm = engine(model, "float32")

    def load(scorer: ModelScorer, *, pack: bool = True, reset: bool = True) -> None:
        llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights(scorer))})
        if pack:
            llm.collective_rpc("finish_reload")
        if reset:
            assert llm.reset_prefix_cache()

    def check(
        name: str,
        scorer: ModelScorer,
        sampler: Any = None,
        options: ParityOptions | None = None,
        **others: ModelScorer,
    ) -> None:
        report = check_parity(
            sampler or LlmSampler(llm), scorer, options or ParityOptions(), others=others
        )
        found[name] = report.to_json()

    check("base_model", policy, base=base)
    load(policy)
    check("healthy", policy, base=base)
    check("one_update_old", after, previous=policy, base=base)
    load(after, reset=False)
    check("stale_prefix_cache", after, previous=policy)
    llm.reset_prefix_cache()
    check("after_stale_prefix_cache", after, previous=policy)
    load(base)
    load(policy, pack=False)  # the tied head stays that of the base
    check("stale_head", policy, previous=base)
    load(policy)
    check("zero_filled", policy, ZeroFilled(llm))
    check("other_temperature", policy, Cooler(llm))
    del llm

    # in bfloat16 an update may hide behind rounding: its checksum tells
    first = shaken(model, "bfloat16", 0.02, 1)
    second = shaken(model, "bfloat16", 0.02, 1)
    with torch.no_grad():
        rows = next(second.model.parameters())
        rows[5, 7] = torch.nextafter(rows[5, 7], rows[5, 7] + 1)
    adapter = adapter_of(model, out / "adapter")
    llm = engine(model, "bfloat16", logprobs="raw", enable_lora=True, max_lora_rank=8)
    from vllm.lora.request import LoRARequest

    tuned = ModelScorer.load(str(model), dtype="bfloat16", adapter=str(adapter))
    check("adapter_not_applied", tuned)
    check("adapter", tuned, LlmSampler(llm, adapter=LoRARequest("policy", 1, str(adapter))))
    start = ModelScorer.load(str(model), dtype="bfloat16")
    check("raw_logps", start, options=ParityOptions(temperature=0.7))
    check("raw_as_wanted", start, options=ParityOptions(temperature=0.7, logps="raw"))
    check("other_tokenizer", ModelScorer(start.model, digits_swapped(model, out / "swapped")))
    label = new_label(1)
    write_weights(weights(first), out / "weights", label)
    llm.collective_rpc("load_weight_files", args=(label,))
    assert llm.reset_prefix_cache()
    check("bfloat16", first, options=ParityOptions(version=label))
    check("bfloat16_one_update_old", second)
    check("other_version", first, options=ParityOptions(version=new_label(2)))
    (out / "cases.json").write_text(json.dumps(found))
    return 0


if __name__ == "__main__":
    run_and_exit(main)
