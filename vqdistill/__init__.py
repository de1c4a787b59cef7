"""Embeddings in, a compact searchable index out; its codes are distilled from the embeddings' own rankings.

The names below are loaded when they are first used, so that searching never imports what only training needs.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vqdistill.errors import VqdistillError

if TYPE_CHECKING:
    from vqdistill.compiler.build import build, compile
    from vqdistill.compiler.passes import plan
    from vqdistill.config import Budget, DistillConfig, SearchParams
    from vqdistill.data.sources import open_source
    from vqdistill.data.teacher import ExactTeacher
    from vqdistill.distill.trainer import Distiller
    from vqdistill.index.opening import open_index
    from vqdistill.interchange.exporting import export_index
    from vqdistill.searcher import Searcher, open
    from vqdistill.types import Hits

__version__ = "0.1.0"

__all__ = [
    "Budget",
    "DistillConfig",
    "Distiller",
    "ExactTeacher",
    "Hits",
    "SearchParams",
    "Searcher",
    "VqdistillError",
    "__version__",
    "build",
    "compile",
    "export_index",
    "open",
    "open_index",
    "open_source",
    "plan",
]

_HOME = {
    "Budget": "config",
    "DistillConfig": "config",
    "Distiller": "distill.trainer",
    "ExactTeacher": "data.teacher",
    "Hits": "types",
    "SearchParams": "config",
    "Searcher": "searcher",
    "build": "compiler.build",
    "compile": "compiler.build",
    "export_index": "interchange.exporting",
    "open": "searcher",
    "open_index": "index.opening",
    "open_source": "data.sources",
    "plan": "compiler.passes",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'vqdistill' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"vqdistill.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
