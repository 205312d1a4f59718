"""What the fork server of warm_ranks imports for ranks that hold vLLM: its engine too."""

import os

import warm_imports

from cero_rl.rollout.engines.vllm_arguments import CPU_ENVIRONMENT, ENVIRONMENT

os.environ.update({"VLLM_ENABLE_V1_MULTIPROCESSING": "0", **ENVIRONMENT, **CPU_ENVIRONMENT})

import vllm
import vllm.v1.engine.llm_engine
import vllm.v1.worker.cpu_worker

import cero_rl.rollout.engines.vllm

LOADED = (warm_imports, vllm, cero_rl)
