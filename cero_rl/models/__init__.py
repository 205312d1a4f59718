"""Models without DeepSpeed: loading, packed attention, log-probabilities, LoRA."""
