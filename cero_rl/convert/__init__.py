"""Checkpoints into other layouts: Hugging Face, DeepSpeed universal, another number of ranks,
Megatron-core. Used by tools/convert.py."""
