"""The run configuration: read it with `load_config`, write it with `dump_config`. Imports no
torch."""

from cero_rl.config.io import dump_config, load_config
from cero_rl.config.root import Config

__all__ = ["Config", "dump_config", "load_config"]
