"""Checkpoints: what is in one (manifest), how it comes about (commit), how it is read back
(restore) and how long it stays (retention).

Names that need torch or DeepSpeed are imported from their modules, so that `cero-rl checkpoints`
starts at once.
"""

from cero_rl.checkpoint.manifest import MANIFEST, read_manifest, step_dirs, verify
from cero_rl.checkpoint.retention import prune, unfinished

__all__ = ["MANIFEST", "prune", "read_manifest", "step_dirs", "unfinished", "verify"]
