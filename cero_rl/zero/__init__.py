"""DeepSpeed: process group, policy and reference engines, weight synchronisation. The only package
that imports deepspeed."""
