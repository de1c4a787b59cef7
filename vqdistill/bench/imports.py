"""Results of any other engine: a TREC run, or an HDF5 file of ids and scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from vqdistill.bench.datasets import DEPTH, Dataset
from vqdistill.bench.referee import check
from vqdistill.bench.store import Operation, Run
from vqdistill.bench.tuning import K
from vqdistill.data.judgments import read_scores
from vqdistill.errors import InvalidInput

_IDS, _SCORES = ("ids", "neighbors"), ("scores", "distances")


def import_results(text: str, dataset: Dataset) -> Run:
    """Read "NAME=FILE": results of the test queries, judged as those of every system.

    Query and document ids are row numbers: of `test` and of the documents. TREC runs have six columns; HDF5 has `ids`
    (q, k) or, as ann-benchmarks writes it, `neighbors`, and perhaps `scores`. Speed is not known.

    Raises
    ------
    InvalidInput
        If the text or file is no such thing, or the results are not of these queries.
    """
    name, _, file = text.partition("=")
    if not name or not file:
        raise InvalidInput(f"an import must be NAME=FILE, got {text!r}")
    path = Path(file)
    queries, docs = dataset.rows("test"), dataset.rows("docs")
    read = _hdf5 if path.suffix in (".h5", ".hdf5") else _trec
    ids, scores = read(path, len(queries), dataset.n)
    if len(ids) != len(queries) or ids.shape[1] < K:
        raise InvalidInput(f"{path} must have {K} results of each of the {len(queries)} test queries, got {ids.shape}")
    depth = min(ids.shape[1], DEPTH)
    ids = ids[:, :depth]
    claimed = np.full(ids.shape, -np.inf, np.float32) if scores is None else scores[:, :depth].astype(np.float32)
    checked = check(name, claimed, ids, queries, docs, depth, dataset.metric == "l2")
    # The scores of other engines are theirs, and so is the order that follows from them; all else must hold.
    findings = [vars(f) for f in checked.findings if f.kind not in ("scores", "order")]
    facts = {"target": 0.0, "setting": {}, "tune_recall": None, "reads": None, "findings": findings, "timed": 0}
    none = np.empty(0)
    top = (checked.ids[:, :K], checked.scores[:, :K])
    operation = Operation(facts, *top, none, none, np.empty((0, 0)), checked.ids, checked.scores)
    about: dict[str, Any] = dataset.origin | {"name": dataset.name, "n": dataset.n, "dim": dataset.dim}
    return Run({"system": name, "budget": "imported", "dataset": about, "bytes": {}, "imported": file}, [operation])


def _trec(path: Path, queries: int, n: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32] | None]:
    relevance = read_scores(path, n_queries=queries, n_docs=n)
    return relevance.padded(max(K, int(relevance.counts.max(initial=0))))


def _hdf5(path: Path, queries: int, n: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32] | None]:
    try:
        with h5py.File(path) as file:
            ids = next((file[name][:] for name in _IDS if name in file), None)
            scores = next((file[name][:] for name in _SCORES if name in file), None)
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        raise InvalidInput(f"{path} cannot be read: {error}") from None
    if ids is None or ids.ndim != 2 or ids.dtype.kind not in "iu":
        raise InvalidInput(f"{path} must have integer ids (or neighbors) of shape ({queries}, at least {K})")
    if scores is not None and scores.shape != ids.shape:
        raise InvalidInput(f"{path} must have scores of shape {ids.shape}, got {scores.shape}")
    return ids.astype(np.int64), scores
