"""Training as the command does it, with one fault put into the real engine of one rank; the rest is
the shipped code.

    RANK=0 WORLD_SIZE=2 ... python tests/rollout/vllm_engine/fault_driver.py FAULT STEP --config
    FILE --set key=value ...

FAULT: dies (raises in the middle of a batch), hangs (gives no answer), loses (aborts a request),
breaks (weights turn to nan). On the last rank, in the first call for training rollouts of round
STEP.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import torch

from cero_rl.commands.training import train_main
from cero_rl.job.process import run_and_exit
from cero_rl.rollout.engines.vllm import VllmEngine


def main() -> int:
    fault, round_number = sys.argv[1], int(sys.argv[2])
    del sys.argv[1:3]
    generate: Any = VllmEngine.generate

    def faulty(self: VllmEngine, requests: Any, *, stream: int, **how: Any) -> Any:
        if stream != round_number or os.environ["RANK"] != str(int(os.environ["WORLD_SIZE"]) - 1):
            return generate(self, requests, stream=stream, **how)
        engine = self._llm.llm_engine
        step, calls = engine.step, 0

        def broken_step() -> Any:
            nonlocal calls
            calls += 1
            if calls == 3 and fault == "dies":
                raise RuntimeError("engine core is dead")
            if fault == "hangs":
                time.sleep(300)
            if calls == 2 and fault == "loses":
                engine.abort_request([str(self._llm.request_counter.counter - 1)])
            return step()

        if fault == "breaks":
            model = engine.model_executor.driver_worker.worker.model_runner.get_model()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.fill_(float("nan"))
        engine.step = broken_step
        try:
            return generate(self, requests, stream=stream, **how)
        finally:
            engine.step = step

    VllmEngine.generate = faulty  # pyright: ignore[reportAttributeAccessIssue]
    return train_main()


if __name__ == "__main__":
    run_and_exit(main)
