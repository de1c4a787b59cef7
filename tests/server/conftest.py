"""Indexes that the tests of the server share, and an application that serves them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.searching import CALIBRATED, PLAIN, N, embeddings, write_index
from tests.server.support import Local
from vqdistill.evaluate.certificate import Provenance, certify
from vqdistill.evaluate.ladder import QuerySet
from vqdistill.index.reader import IndexReader


def asked(seed: int) -> QuerySet:
    rows, _ = embeddings(0)
    rng = np.random.default_rng(seed)
    queries = (rows[rng.integers(0, N, 60)] + 0.6 * rng.standard_normal((60, rows.shape[1]))).astype(np.float32)
    return QuerySet(queries, np.argsort(-(queries @ rows.T), axis=1, kind="stable")[:, :100])


def proof(reader: IndexReader) -> Any:
    provenance = Provenance(real_queries=True, truth="exact", truth_recall=None)
    return reader.manifest.search, certify(reader, asked(1), asked(2), 10, provenance)[0]


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Indexes by name: rows (certified, ids are row numbers), words (string ids, cosine), bare (no rows on disk)."""
    place = tmp_path_factory.mktemp("served")
    words = [f"doc-{row}" for row in range(N)]
    write_index(place / "rows.vqd", search=CALIBRATED, additive=True, certify=proof)
    write_index(place / "words.vqd", "cosine", search=PLAIN, ids=words)
    write_index(place / "bare.vqd", search=type(PLAIN)(nprobe=3, refine=0), dense="none")
    return {path.stem: path for path in sorted(place.iterdir())}


@pytest.fixture(scope="module")
def local(shelf: dict[str, Path]) -> Iterator[Local]:
    server = Local(shelf)
    yield server
    server.service.close()


@pytest.fixture(scope="session")
def queries() -> Any:
    return embeddings(0)[1]
