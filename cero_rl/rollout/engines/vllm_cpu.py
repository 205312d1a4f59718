"""vLLM on CPUs with tensor parallelism: shared memory that no other job on the machine shares, and
that no job leaves behind.

vLLM 0.32 names the segments of a group after its way of joining the process group, which is the
same word for every job under the external launcher, and removes them in a shutdown that would also
destroy DeepSpeed's process group. A second job would then fail, or two at once would write into
each other's sums. So the name gets the job's port, and once all ranks hold the memory the name
goes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def private_segments() -> Iterator[None]:
    """Build an engine of several ranks inside."""
    from vllm.distributed.device_communicators import (  # pyright: ignore[reportMissingImports]
        cpu_communicator,
    )

    prefix = f"cero-{os.environ['MASTER_PORT']}-"
    shared = cpu_communicator._CPUSHMDistributed
    make_name = shared.make_group_name
    shared.make_group_name = staticmethod(
        lambda communicator: prefix + make_name(communicator).replace("/", "")
    )
    try:
        yield
    finally:
        shared.make_group_name = staticmethod(make_name)
        for segment in Path("/dev/shm").glob(f"{prefix}*"):
            segment.unlink(missing_ok=True)
