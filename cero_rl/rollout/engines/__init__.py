"""Who generates: transformers, vLLM in the rank, or vLLM's server."""
