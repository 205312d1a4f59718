"""Joining the process group under the `deepspeed` launcher (or plain python), and leaving it."""

from __future__ import annotations

import datetime
import os
import warnings
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from cero_rl.distributed.group import Group
from cero_rl.distributed.rendezvous import join
from cero_rl.errors import EngineError, first_line

# as torchrun and cero-rl launch, and as DeepSpeed's launcher call the ranks of a machine
_RANKS_HERE = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE")


def prepare_environment() -> None:
    """Set what DeepSpeed reads at import; call before anything imports deepspeed."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    for name, value in (
        ("RANK", "0"),
        ("LOCAL_RANK", "0"),
        ("WORLD_SIZE", "1"),
        ("MASTER_ADDR", "127.0.0.1"),
    ):
        os.environ.setdefault(name, value)
    # alone: any free one
    os.environ.setdefault("MASTER_PORT", "0" if os.environ["WORLD_SIZE"] == "1" else "29517")
    _share_cores()


def _share_cores() -> None:
    """Threads of a rank where nobody has set them: without a word every rank would take all cores
    for every operation on the CPU."""
    if "OMP_NUM_THREADS" in os.environ:
        return
    ranks = next(os.environ[n] for n in (*_RANKS_HERE, "WORLD_SIZE") if n in os.environ)
    cores = len(os.sched_getaffinity(0)) // int(ranks)
    threads = max(1, min(cores, torch.get_num_threads()))
    os.environ["OMP_NUM_THREADS"] = str(threads)  # of what this rank starts, too
    torch.set_num_threads(threads)


def start(timeout_seconds: float = 1800.0) -> Group:
    """Join the process group (NCCL on GPUs, gloo on CPUs) through DeepSpeed and return it."""
    prepare_environment()
    # DeepSpeed calls collectives by names that torch has deprecated; a user can do nothing about it
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    import deepspeed
    from deepspeed.ops import __compatible_ops__
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()

    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        # The shared-memory collective is compiled at start (tens of seconds) and gives the same
        # sums.
        __compatible_ops__["deepspeed_shm_comm"] = False
    local_rank = int(os.environ["LOCAL_RANK"])
    if on_gpu:
        if local_rank >= torch.cuda.device_count():
            raise EngineError(
                f"local rank {local_rank} has no GPU ({torch.cuda.device_count()} visible); "
                "lower --num_accelerators"
            )
        torch.cuda.set_device(local_rank)
    backend, timeout = "nccl" if on_gpu else "gloo", datetime.timedelta(seconds=timeout_seconds)
    try:
        join(backend, timeout)
        # takes the group that is there
        deepspeed.init_distributed(dist_backend=backend, timeout=timeout, verbose=False)
    except (OSError, RuntimeError, ValueError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise EngineError(
            f"{os.environ['WORLD_SIZE']} rank(s) could not meet at {where} ({first_line(error)}); "
            "another job may use the port (--master_port, or MASTER_PORT), or a rank is missing"
        ) from error
    device = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    return Group(rank=dist.get_rank(), world_size=dist.get_world_size(), device=device)


def meeting_store() -> Any:
    """Where the ranks met, over a connection of its own: the group's may be blocked by one that
    waits. Of a run of one rank too."""
    store: Any = distributed_c10d._get_default_store()  # torch's annotation has no clone()
    return store.clone()


def seed_rank(seed: int, rank: int) -> None:
    """Torch's generators of this rank as a function of the run's seed, its own on every rank. The
    sampler draws by counters of its own; this is for what draws inside a model."""
    state = np.random.SeedSequence([seed, rank]).generate_state(1, np.uint64)
    torch.manual_seed(int(state[0]) % 2**63)


def stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
