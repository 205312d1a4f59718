"""Checkpoints: what is in one (manifest, progress), how it comes about (saver, commit), how it is
read back (restore), how long it stays (retention); and the model at the end (export).

Names that need torch or DeepSpeed are imported from their modules, so that `cero-rl checkpoints`
starts at once.
"""

from cero_rl.checkpoint.manifest import MANIFEST, read_manifest, step_dirs, verify
from cero_rl.checkpoint.retention import prune, unfinished

__all__ = ["MANIFEST", "prune", "read_manifest", "step_dirs", "unfinished", "verify"]
