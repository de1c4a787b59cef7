"""How a live store keeps its index: what the one writer does to it."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from vqdistill.documents.document import Id, id_dtype
from vqdistill.documents.store import DocumentStore
from vqdistill.errors import VqdistillError
from vqdistill.index.gc import gc
from vqdistill.index.reader import IndexReader
from vqdistill.integrations.options import StoreOptions
from vqdistill.types import F32Rows

_LOG = logging.getLogger(__name__)


def take_waiting(documents: DocumentStore, reader: IndexReader) -> None:
    """Let an index take all that waits for it, as one generation, and note that it has.

    Parameters
    ----------
    documents : where rows wait
    reader : of any generation of the index, whose memory is shared

    Raises
    ------
    VqdistillError
        If the index cannot be written; all goes on waiting.
    """
    # Here, because it encodes, which searching need not load.
    from vqdistill.index.update import IndexUpdater

    dtype = id_dtype(documents.kind)
    with IndexUpdater(reader.path, sharing=reader) as updater:
        updater.delete(np.array(documents.waiting_deletes(), dtype))
        for ids, rows in documents.waiting_rows(updater.manifest.d):
            updater.add(np.array(ids, dtype), rows, replace=True)
        updater.publish()
    documents.settle()
    try:
        gc(reader.path)
    except VqdistillError as error:
        _LOG.warning("old generations of %s stay: %s", reader.path, error)


def compile_rows(
    target: Path,
    blocks: Iterable[tuple[list[Id], F32Rows]],
    shape: tuple[int, int],
    options: StoreOptions,
    queries: Any,
) -> dict[str, Any]:
    """Compile an index of rows that come some at a time; whatever stops it leaves no index.

    Parameters
    ----------
    target : directory to make; what an earlier attempt left there is removed
    blocks : ids and rows (b, d) float32
    shape : (n, d) of all rows
    options : of the compile
    queries : learn queries; None = pseudo-queries

    Raises
    ------
    InvalidInput, BudgetInfeasible, VqdistillError
        As `compile`.
    """
    # Here, because it loads what only training needs.
    from vqdistill.compiler.build import compile

    remove_index(target)
    spill = target.with_name(f"{target.name}.npy")
    ids: list[Id] = []
    try:
        table = np.lib.format.open_memmap(spill, "w+", np.dtype("<f4"), shape)
        for keys, rows in blocks:
            table[len(ids) : len(ids) + len(keys)] = rows
            ids += keys
        del table
        return compile(
            spill,
            target,
            queries="none" if queries is None else queries,
            ids=np.array(ids, id_dtype(options.kind)),
            metric=options.metric,
            ram=options.ram,
            recall=options.recall,
            dense=options.dense,
            distill=options.distill,
            seed=options.seed,
        )
    except BaseException:
        remove_index(target)
        raise
    finally:
        _remove(spill)
        _remove(target.with_name(f"{target.name}.cache"))


def remove_index(path: Path) -> None:
    """Remove an index that nothing names, and what its compile left; who has it open keeps what was opened."""
    for name in (path.name, f"{path.name}.npy", f"{path.name}.cache", f"{path.name}.work"):
        _remove(path.with_name(name))


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
