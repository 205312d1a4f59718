"""From scored rollouts to an optimizer step: batch, packing, policy losses, the steps themselves.
DeepSpeed is behind the policy."""
