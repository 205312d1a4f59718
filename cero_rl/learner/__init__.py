"""From scored rollouts to a loss: packing, packed attention, log-probabilities, policy losses.
Knows nothing of DeepSpeed."""
