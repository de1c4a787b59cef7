"""Every exception that vqdistill raises on purpose; each message is one sentence a user can act on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class VqdistillError(Exception):
    """Root of all errors raised by vqdistill."""


class InvalidInput(VqdistillError, ValueError):
    """A value, array, file or option from the user is not usable; the message says what was got and wanted."""


class CorruptIndex(VqdistillError):
    """An index directory is damaged: a size, checksum, id or structure does not agree."""


class FormatTooNew(VqdistillError):
    """The index was written in a format, or with a required feature, newer than this reader."""


class FormatTooOld(VqdistillError):
    """The index was written in a format that this reader no longer supports."""


class BudgetInfeasible(VqdistillError):
    """No plan fits the memory budget; the message names the smallest budget that does."""


class MissingDependency(VqdistillError, ImportError):
    """An optional library is not installed; the message has the line that installs it."""


class SearchTimeout(VqdistillError, TimeoutError):
    """A search took longer than the caller allowed."""


class ShardsLost(VqdistillError):
    """Shards of an index cannot be reached, and others hold no copy of them."""


class ServerUnavailable(VqdistillError):
    """A server cannot be reached, or is too busy to take a request."""


@contextmanager
def needed_by(what: str, library: str, *, extra: str) -> Iterator[None]:
    """Import optional libraries in a `with` block, and say how to install them if they are absent.

    Parameters
    ----------
    what : as users call it, needs them
    library : as package registries call it
    extra : of this package, which installs it

    Raises
    ------
    MissingDependency
        If a module that is none of ours cannot be imported.
    """
    try:
        yield
    except ImportError as error:
        if (error.name or "").split(".")[0] == "vqdistill":
            raise
        raise MissingDependency(f"{what} needs {library}: pip install 'vqdistill[{extra}]'") from None


def first_line(error: BaseException) -> str:
    """Return the first line of what an error of another library says."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
