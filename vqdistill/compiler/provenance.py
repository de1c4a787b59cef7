"""What a compile is made with, so that work which another process left is gone on with only if that is the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vqdistill.compiler.supervision import learn_queries
from vqdistill.data.files import files_in, resolve, stamp_of
from vqdistill.data.sources import EmbeddingSource


def made_with(
    src: EmbeddingSource, input: Any, queries: Any, teacher: Any, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return, JSON-ready, what a result depends on, by name.

    Parameters
    ----------
    src : rows, whose content is fingerprinted, a sample if they are many; files also count by size and time
    input, queries, teacher : as for `compile`; a function as teacher cannot be told from another one
    options : all others that the bytes depend on
    """
    asked = learn_queries(src, queries)
    judge = "function" if callable(teacher) else str(teacher)
    return dict(options) | {
        "input": [src.fingerprint(), _stamps(input)],
        "queries": None if asked is None else asked.fingerprint(),
        "teacher": [judge.partition(":")[0], _stamps(judge.partition(":")[2])],
    }


def _stamps(name: Any) -> list[tuple[int, int | str]]:
    """What tells the content of each file of a path, see `stamp_of`; nothing for what is no path."""
    if isinstance(name, (list, tuple)):
        return [stamp for each in name for stamp in _stamps(each)]
    if not isinstance(name, (str, Path)) or not str(name):
        return []
    found = resolve(str(name))[0]
    return [stamp_of(file) for file in (files_in(found[0]) if len(found) == 1 else found)]
