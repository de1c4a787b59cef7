"""Every exception that vqdistill raises on purpose; each message is one sentence a user can act on."""


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


class ServerUnavailable(VqdistillError):
    """A server cannot be reached, or is too busy to take a request."""
