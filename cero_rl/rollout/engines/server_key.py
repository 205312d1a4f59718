"""The key between a run and its rollout server: made once, kept in a file that only its owner
reads, never printed.

The variable CERO_SERVER_KEY stands before the file, for clusters that hand secrets over in the
environment.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
from pathlib import Path

from cero_rl.errors import ConfigError

VARIABLE = "CERO_SERVER_KEY"
_KEY = re.compile(r"[A-Za-z0-9._~+/=-]{16,512}")  # what an Authorization header can carry


def make_key(path: Path) -> str:
    """The key of `path`, written there first if there is none. Raises ConfigError."""
    if not os.environ.get(VARIABLE) and not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:  # another server was faster
            return read_key(path)
        except OSError as error:
            raise ConfigError(
                f"rollout.server.key_file: {path} cannot be written ({error.strerror}); "
                "name another place"
            ) from None
        with os.fdopen(descriptor, "w", encoding="ascii") as out:
            out.write(secrets.token_urlsafe(32) + "\n")
    return read_key(path)


def read_key(path: Path) -> str:
    """Raises ConfigError where there is no key, where others can read it, and where it is none."""
    where, key = VARIABLE, os.environ.get(VARIABLE)
    if not key:
        where = f"rollout.server.key_file: {path}"
        try:
            mode = path.stat().st_mode
            key = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"{where} cannot be read ({_reason(error)}); start the server first: "
                "cero-rl serve --config FILE"
            ) from None
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ConfigError(
                f"{where} can be read by others (mode {stat.S_IMODE(mode):04o}); chmod 600 "
                "it, or delete it for a new one"
            )
    if not _KEY.fullmatch(key):
        raise ConfigError(
            f"{where} holds no key; wanted 16 to 512 letters, digits or ._~+/=- in one line"
        )
    return key


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return str(error.strerror) if isinstance(error, OSError) else "it is not text"
