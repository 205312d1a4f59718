"""What the fork server of warm_ranks imports before it forks: all that a training rank imports."""

import os

os.environ["DS_ACCELERATOR"] = "cpu"
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["OMP_NUM_THREADS"] = "1"

import peft
import torch._dynamo
import torch._inductor.compile_fx
import transformers.models.qwen3.modeling_qwen3
from deepspeed.runtime.zero.muon import muon_optimizer
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import cero_rl.commands.training
import cero_rl.rollout.engines.transformers
import cero_rl.train.loop

LOADED = (
    peft,
    torch,
    transformers,
    muon_optimizer,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    cero_rl,
)
