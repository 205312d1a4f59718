"""Entry point of training for other launchers: `deepspeed recipes/train_cero.py --config
recipes/qwen3_8b.yaml [--set key=value]`. On one machine `cero-rl launch` starts the same."""

from cero_rl.commands.rank import main

if __name__ == "__main__":
    main()
