"""The sentence that a user reads where a framework is not installed."""

from __future__ import annotations

from vqdistill.errors import MissingDependency


def missing(framework: str, extra: str, error: ImportError) -> MissingDependency:
    """Return what to raise when importing a framework failed.

    Parameters
    ----------
    framework : as people call it
    extra : of this package, which installs it
    error : of the import
    """
    absent = f"{error.name}" if isinstance(error, ModuleNotFoundError) else str(error)
    return MissingDependency(f"the adapter to {framework} needs {absent}: pip install 'vqdistill[{extra}]'")
