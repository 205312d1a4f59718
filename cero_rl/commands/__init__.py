"""One file a command of `cero-rl`, and the training command."""
