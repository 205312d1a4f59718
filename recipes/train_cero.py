"""Entry point of training: `deepspeed recipes/train_cero.py --config recipes/qwen3_8b.yaml [--set
key=value]`."""

from cero_rl.commands.train import train_main
from cero_rl.job.process import run_and_exit

if __name__ == "__main__":
    run_and_exit(train_main)
