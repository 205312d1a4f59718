"""What runs inside vLLM's worker: mixed into its worker class by name, reached through
collective_rpc. Knows nothing of the engine.

vLLM 0.32 copies weights into the existing parameters, so a tied lm_head sees them; but on a CPU
every linear layer multiplies with a packed copy made when it was loaded, and a tied head, for which
no weight of its own arrives, keeps the old copy. Its log-probabilities are then those of the old
head, without a word. Experts are left unpacked where the kernel expects them packed.
`finish_reload` packs both again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from cero_rl.files.lora_adapter import base_checksum, bit_sum
from cero_rl.rollout.engines.vllm_arguments import ADAPTER
from cero_rl.rollout.engines.weight_files import ROOT_VARIABLE, check_weights, read_weights


class WorkerExtension:
    model_runner: Any  # of the worker this class is mixed into, as is all to the next comment
    model_config: Any
    lora_config: Any
    reload_weights: Any
    add_lora: Any
    list_loras: Any
    cero_label = ""  # of the weights that load_weight_files brought
    cero_checksum = ""  # of the same, whatever their order; empty: an adapter's, or the start's

    def finish_reload(self) -> int:
        """Pack again what reload_weights left stale or plain; call after it, on CPUs. Returns how
        many heads and layers of experts were packed."""
        from vllm.model_executor.layers import (  # pyright: ignore[reportMissingImports]
            vocab_parallel_embedding,
        )

        packed = 0
        with torch.no_grad():
            for module in self.model_runner.get_model().modules():
                method: Any = getattr(module, "quant_method", None)
                if isinstance(module, vocab_parallel_embedding.ParallelLMHead):
                    method.process_weights_after_loading(module)
                    packed += 1
                elif getattr(method, "moe_kernel", None) is not None:
                    method.moe_kernel.fused_experts.process_weights_after_loading(module)
                    packed += 1
        return packed

    # --- in a server: weights come as files, and every answer must be traceable to them

    def load_weight_files(self, label: str) -> dict[str, Any]:
        """Take over the weights that ROOT/LABEL holds, unless they are here already; a torn or
        damaged file is refused untouched."""
        if label != self.cero_label:
            files = check_weights(Path(os.environ[ROOT_VARIABLE]), label)
            # a reload that breaks off leaves weights that are nobody's
            self.cero_label = self.cero_checksum = ""
            if files.is_adapter:
                from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]

                # that of the start adapter, whose place this one takes
                (number,) = self.list_loras()
                self.add_lora(LoRARequest(ADAPTER, number, str(files.folder), load_inplace=True))
            else:
                total = 0

                def counted() -> Iterator[tuple[str, torch.Tensor]]:
                    nonlocal total
                    for name, tensor in read_weights(files.shards):
                        total += bit_sum(tensor)
                        yield name, tensor

                self.reload_weights(weights_iterator=counted())
                if not torch.cuda.is_available():
                    self.finish_reload()
                self.cero_checksum = base_checksum(total)
            self.cero_label = label
        return self.weights_state()

    def weights_state(self) -> dict[str, Any]:
        """Which weights are here, and what a client must know to trust the answers."""
        config = self.model_config
        return {
            "label": self.cero_label,
            "checksum": self.cero_checksum,
            "dtype": str(config.dtype).removeprefix("torch."),
            "logprobs_mode": str(config.logprobs_mode),
            "max_model_tokens": int(config.max_model_len),
            "vocab_size": int(config.get_vocab_size()),
            "hidden_size": int(config.get_hidden_size()),
            "lora_rank": int(self.lora_config.max_lora_rank) if self.lora_config else 0,
            "layers": int(config.hf_text_config.num_hidden_layers),
        }
