"""What runs inside vLLM's worker: mixed into its worker class by name, reached through collective_rpc. Knows nothing of the engine.

vLLM 0.32 copies weights into the existing parameters, so a tied lm_head sees them; but on a CPU every linear layer multiplies with a
packed copy made when it was loaded, and a tied head, for which no weight of its own arrives, keeps the old copy. Its log-probabilities
are then those of the old head, without a word. `finish_reload` packs it again.
"""

from __future__ import annotations

from typing import Any

import torch


class WorkerExtension:
    model_runner: Any  # of the worker this class is mixed into

    def finish_reload(self) -> int:
        """Pack again what reload_weights left stale; call after it, on CPUs. Returns how many heads were packed."""
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead  # pyright: ignore[reportMissingImports]

        heads = [m for m in self.model_runner.get_model().modules() if isinstance(m, ParallelLMHead)]
        with torch.no_grad():
            for head in heads:
                head.quant_method.process_weights_after_loading(head)
        return len(heads)
