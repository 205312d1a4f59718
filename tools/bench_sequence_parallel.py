"""What a rank holds of one pack's forward and backward pass where N ranks cut it between them
(zero.sequence_parallel): `make bench-sequence-parallel`.

    python tools/bench_sequence_parallel.py [--ranks 1,2,4] [--tokens 8192] [--layers 8]

A random float32 Qwen3, whole on every gloo rank (no ZeRO: what is measured are activations), and a
micro-batch of `--tokens` tokens in one sequence or in sixteen, through the learner's own code.
`kept_mb` is what autograd holds for the backward pass, each storage once, without weights;
`peak_mb` how far the resident memory rises above what it was, gradients (gradient_mb) included;
both of the rank with most. Loss and gradient, summed over the ranks, are compared with one rank's.
A row a shape and N is appended to docs/bench/sequence_parallel.jsonl and printed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]
from bench_timing import machine  # noqa: E402
from kill_sweep import free_port  # noqa: E402

ROWS = ROOT / "docs/bench/sequence_parallel.jsonl"
SEQUENCES = (1, 16)
VOCABULARY, HEADS, KEY_HEADS, WIDTH = 4096, 8, 4, 32
MB = 1e6


def measure(options: argparse.Namespace, sequences: int, out: Path) -> None:
    """One rank: a forward and a backward pass, and what they held."""
    import torch
    import torch.distributed as dist
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from cero_rl.config.learner import LearnerConfig
    from cero_rl.distributed.block import Block, OncePerBlock
    from cero_rl.learner.losses import policy_loss
    from cero_rl.learner.packing import build_step_plan, pack_rollouts
    from cero_rl.memory.peaks import Peaks
    from cero_rl.models.attention import choose_attention
    from cero_rl.models.logprob import PolicyModule, forward_micro, head_chunk_tokens
    from cero_rl.types import Completion, RolloutGroup
    from cero_rl.zero import launch

    group = launch.start(timeout_seconds=600)
    block = Block.of(group, group.world_size, 600)
    torch.manual_seed(0)
    size = HEADS * WIDTH
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=size,
        intermediate_size=3 * size,
        num_hidden_layers=options.layers,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
        head_dim=WIDTH,
        max_position_embeddings=options.tokens,
    )
    model = Qwen3ForCausalLM._from_config(config, attn_implementation=choose_attention("sdpa"))
    rng = np.random.default_rng(0)
    length = options.tokens // sequences
    prompt = length // 8

    def completion() -> Completion:
        tokens = rng.integers(0, VOCABULARY, length - prompt)
        return Completion(tokens, np.full(len(tokens), -8.3, np.float32), "", "stop", 0)

    made = tuple(completion() for _ in range(sequences))
    groups = [RolloutGroup(0, rng.integers(0, VOCABULARY, prompt), made)]
    batch = pack_rollouts(groups, [np.zeros(sequences, np.float32)])
    learner = LearnerConfig(max_micro_batch_tokens=options.tokens)
    plan = build_step_plan(
        batch,
        torch.linspace(-1, 1, sequences) if sequences > 1 else torch.ones(1),
        torch.ones(sequences, dtype=torch.bool),
        config=learner,
        max_response_tokens=length - prompt,
        head_chunk_tokens=head_chunk_tokens(VOCABULARY),
        group=OncePerBlock.of(group, block),
        block=block,
    )
    (micro,) = plan.micro_batches
    policy = PolicyModule(model, block=block).train()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    seen: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    group.barrier()
    peaks = Peaks(group.device)
    with peaks.phase("learner"):
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            logp, entropy = forward_micro(policy, micro, with_entropy=True)
            loss = policy_loss(logp, entropy, micro, learner).loss_sum / plan.denominator
        loss.backward()
    held = peaks.take().get("learner", 0) - peaks.before
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    if block.size > 1:
        dist.all_reduce(gradient)
    if group.is_main:
        np.save(out.with_suffix(".npy"), gradient.numpy())
    row = {
        "kept_mb": sum(seen.values()) / MB,
        "peak_mb": held / MB,
        "gradient_mb": gradient.numel() * 4 / MB,
        "loss": float(loss.detach()),
    }
    out.with_name(f"{out.name}-{group.rank}").write_text(json.dumps(row))
    launch.stop()


def run(line: list[str], ranks: int, out: Path) -> dict[str, float]:
    """The largest of every number over the ranks. Raises SystemExit with a rank's own words."""
    meet = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(ROOT),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(ranks),
    }
    started = [
        subprocess.Popen(
            [sys.executable, __file__, *line, "--out", str(out)],
            env={**meet, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(ranks)
    ]
    said = [process.communicate()[0] for process in started]
    for process, words in zip(started, said):
        if process.returncode:
            raise SystemExit(f"{ranks} ranks: exit {process.returncode}\n{words}")
    rows = [json.loads(out.with_name(f"{out.name}-{rank}").read_text()) for rank in range(ranks)]
    return {name: max(row[name] for row in rows) for name in rows[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--ranks", default="1,2,4")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--rank-of", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank_of:
        measure(options, options.rank_of, options.out)
        return
    sizes = ["--tokens", str(options.tokens), "--layers", str(options.layers)]
    with tempfile.TemporaryDirectory(prefix="bench-slices-") as folder:
        for sequences in SEQUENCES:
            one: dict[str, Any] = {}
            for ranks in map(int, options.ranks.split(",")):
                out = Path(folder) / f"{sequences}-{ranks}"
                found = run([*sizes, "--rank-of", str(sequences)], ranks, out)
                gradient = np.load(out.with_suffix(".npy"))
                one = one or {**found, "gradient": gradient}
                gap = np.linalg.norm(gradient - one["gradient"]) / np.linalg.norm(one["gradient"])
                row = {
                    "bench": "sequence_parallel",
                    "sequences": sequences,
                    "ranks": ranks,
                    "tokens": options.tokens,
                    "layers": options.layers,
                    **{name: round(found[name], 1) for name in found if name != "loss"},
                    "kept_ratio": round(found["kept_mb"] / one["kept_mb"], 3),
                    "peak_ratio": round(found["peak_mb"] / one["peak_mb"], 3),
                    "loss": found["loss"],
                    "loss_error": abs(found["loss"] - one["loss"]),
                    "gradient_error": float(f"{gap:.2g}"),
                    **machine(),
                }
                with ROWS.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(json.dumps(row))


if __name__ == "__main__":
    main()
