"""Names of files that may be URLs; nothing here reaches a store."""

from __future__ import annotations

import os
import re
from pathlib import Path

from vqdistill.errors import InvalidInput

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_FILE = "file://"


def is_url(name: str | Path) -> bool:
    """Whether a name is a URL rather than a local path; `file://` counts until `local_name` has taken it off."""
    return _URL.match(str(name)) is not None


def local_name(name: str | Path) -> str:
    """Return the path that a `file://` URL stands for, and any other name as it is.

    Raises
    ------
    InvalidInput
        If such a URL has no absolute path.
    """
    text = str(name)
    if not text.lower().startswith(_FILE):
        return text
    path = text[len(_FILE) :]
    if not path.startswith("/"):
        raise InvalidInput(f"a file URL must have an absolute path, as in file:///data/rows.npy, got {text}")
    return path


def absolute(name: str | Path) -> str:
    """Return a name that means the same in another working directory."""
    text = local_name(name)
    return text if is_url(text) else os.path.abspath(text)


def require_local(name: str | Path) -> Path:
    """Return the path of an index that is to be opened or changed.

    Raises
    ------
    InvalidInput
        If it is a URL: an index is mapped into memory, which takes local files.
    """
    text = local_name(name)
    if is_url(text):
        raise InvalidInput(
            f"an index must be on a local disk to be used, got {text}: bring it there first, by"
            f" `vqdistill fetch {text} -o DIR`"
        )
    return Path(text)
