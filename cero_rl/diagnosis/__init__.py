"""What makes a rollout pay: the signal and noise of a policy's gradient, and where in the pool they
come from. One process, no DeepSpeed."""
