"""What a distiller is given, as one value."""

from __future__ import annotations

from dataclasses import dataclass

from vqdistill.data.relevance import Relevance
from vqdistill.data.sources import EmbeddingSource
from vqdistill.types import F32Rows

DEPTH = 50
"""Documents of each query in the tasks."""


@dataclass(frozen=True)
class Task:
    """A corpus, learn queries and what the teacher says of them."""

    src: EmbeddingSource
    queries: F32Rows
    relevance: Relevance
