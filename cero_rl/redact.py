"""Keys and passwords out of whatever is written or printed: by the name they go by, by how they
look, and by where they stand in a URL.

In: text, or a tree of settings. Out: the same with `***` in place of each secret. `reason` says why
a setting is not taken at all. Values of environment variables with a telling name (HF_TOKEN,
WANDB_API_KEY, ...) are known and never repeated. Standard library only.
"""

from __future__ import annotations

import os
import re
from typing import Any

MASK = "***"
_SHORTEST_ENV = 8  # characters; a shorter value would be found in innocent words
_NAME = re.compile(
    r"(?:^|[._-])(?:(?:api|access|private|secret|server|auth)[_-]?key(?:[_-]?id)?"
    r"|secret|(?:auth[_-]?)?token|password|passwd|credentials?)$",
    re.IGNORECASE,
)
_VALUE = re.compile(
    r"(?<![A-Za-z0-9])(?:hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}"
    r"|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}|glpat-[\w-]{20,}"
    r"|(?:AKIA|ASIA)[0-9A-Z]{16}|AIza[\w-]{35}|xox[abprs]-[\w-]{10,}"
    r"|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]+"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----)"
)
_USERINFO = re.compile(  # a path made of a URL has one slash
    r"([A-Za-z][A-Za-z0-9+.-]{0,20}:/{1,2})([^/\s@'\"]+)@"
)
_BEARER = re.compile(r"(\b(?:bearer|basic)\s+)[A-Za-z0-9._~+/-]{12,}=*", re.IGNORECASE)
_ASSIGNED = re.compile(  # in a URL's query or on a command line
    r"((?:api_?key|access_?token|auth_?token|password|passwd|secret"
    r"|(?<=[?&])(?:token|key|sig|signature|x-amz-signature))=)[^&\s'\"]+",
    re.IGNORECASE,
)


def names_secret(key: str) -> bool:
    """Does a setting or variable of this name hold a secret? `hf_token` does, `max_prompt_tokens`
    does not."""
    return _NAME.search(key) is not None


def _planted() -> list[str]:
    """Secrets of this process's environment, longest first. A path to a secret is none."""
    found = {
        v
        for k, v in os.environ.items()
        if names_secret(k) and len(v) >= _SHORTEST_ENV and not v.startswith(("/", "~"))
    }
    return sorted(found, key=len, reverse=True)


def text(words: str) -> str:
    """`words` without secrets."""
    for secret in _planted():
        words = words.replace(secret, MASK)
    words = _VALUE.sub(MASK, words)
    words = _BEARER.sub(rf"\1{MASK}", words)
    words = _USERINFO.sub(rf"\1{MASK}@", words)
    return _ASSIGNED.sub(rf"\1{MASK}", words)


def tree(value: Any, key: str = "") -> Any:
    """A tree of settings without secrets, for what is written down or sent to a tracker."""
    if isinstance(value, dict):
        return {k: tree(v, str(k)) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [tree(v, key) for v in value]
    if isinstance(value, str):
        return MASK if value and names_secret(key) else text(value)
    return value


def reason(key: str, value: str) -> str | None:
    """Why a configuration may not hold this value under this key, in words that do not repeat it;
    None if it may. URLs: `url_reason`."""
    if (
        _VALUE.search(value)
        or (value and names_secret(key))
        or any(secret in value for secret in _planted())
    ):
        return (
            "looks like a secret key; keep secrets in environment variables, never in a "
            "configuration"
        )
    return None


def url_reason(value: str) -> str | None:
    """The same for a user or password in a URL."""
    for scheme, who in _USERINFO.findall(value):
        if ":" in who or scheme.lower().startswith("http"):
            return (
                "holds a URL with a user or password in it; give the URL without, and log in "
                "by an environment variable or a netrc file"
            )
    return None
