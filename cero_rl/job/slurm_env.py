"""A rank that srun started learns who it is: RANK, LOCAL_RANK and WORLD_SIZE from Slurm's
variables.

The job script sets MASTER_ADDR and MASTER_PORT. Where another launcher has set RANK, or there is
no srun, nothing is touched.
"""

from __future__ import annotations

from collections.abc import MutableMapping

from cero_rl.errors import ConfigError

_FROM_SLURM = {"RANK": "SLURM_PROCID", "LOCAL_RANK": "SLURM_LOCALID", "WORLD_SIZE": "SLURM_NTASKS"}


def adopt(environ: MutableMapping[str, str]) -> None:
    """Set the three variables in `environ`; raises ConfigError where several tasks would each
    train alone."""
    # the batch script itself has SLURM_PROCID too, but no step
    if "RANK" in environ or "SLURM_STEP_ID" not in environ:
        return
    if any(not environ.get(name, "").isdigit() for name in _FROM_SLURM.values()):
        found = ", ".join(f"{name}={environ.get(name)!r}" for name in _FROM_SLURM.values())
        raise ConfigError(
            f"srun: got {found}, wanted three numbers; start the run with the script of "
            "`cero-rl slurm render`"
        )
    if not (environ.get("MASTER_ADDR") and environ.get("MASTER_PORT", "").isdigit()):
        if environ["SLURM_NTASKS"] == "1":
            return  # one process in an interactive srun
        raise ConfigError(
            f"MASTER_ADDR and MASTER_PORT: not set for {environ['SLURM_NTASKS']} tasks of "
            "one srun, which would each train alone; "
            "start the run with the script of `cero-rl slurm render`"
        )
    for name, source in _FROM_SLURM.items():
        environ[name] = environ[source]
