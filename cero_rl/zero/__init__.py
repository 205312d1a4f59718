"""DeepSpeed: the start of a rank, policy and reference, weights out of shards, shards on the disk.
The only package that imports deepspeed."""
