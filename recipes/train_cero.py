"""Entry point of training: `deepspeed recipes/train_cero.py --config recipes/qwen3_8b.yaml [--set key=value]`."""

import sys

from cero_rl.cli import train_main

if __name__ == "__main__":
    sys.exit(train_main())
