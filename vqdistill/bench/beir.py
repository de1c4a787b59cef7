"""BEIR-style folders: corpus.jsonl, queries.jsonl and qrels/, beside the embeddings of both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from vqdistill.bench.parts import Parts, split_learn
from vqdistill.data.ids import StrIds, build_ids
from vqdistill.data.judgments import read_labels
from vqdistill.data.sources import EmbeddingSource, open_queries, open_source
from vqdistill.errors import InvalidInput

_SUFFIXES = (".npy", ".fbin", ".fvecs", ".safetensors", ".h5", ".parquet")


def is_beir(source: str) -> bool:
    """Tell a folder with qrels from a folder of shards."""
    return (Path(source) / "qrels").is_dir()


def open_beir(folder: Path, *, metric: str | None, seed: int) -> Parts:
    """Open corpus and queries (corpus.npy and queries.npy, or the like), one row a line of the .jsonl, and qrels.

    The queries of qrels/test.tsv measure; those of train.tsv and dev.tsv, or without them all others, are learned from.

    Raises
    ------
    InvalidInput
        If a part is missing, or embeddings and ids are not as many.
    """
    src = open_source(_embeddings(folder, "corpus"), metric=metric)
    queries = open_queries(_embeddings(folder, "queries"), src)
    doc_ids, query_ids = _ids(folder, "corpus", src), _ids(folder, "queries", queries)
    names: dict[str, Any] = {"n_queries": queries.n, "n_docs": src.n, "query_ids": query_ids, "doc_ids": doc_ids}
    test = folder / "qrels" / "test.tsv"
    if not test.is_file():
        raise InvalidInput(f"{folder} must have qrels/test.tsv")
    qrels = read_labels(test, **names)
    judged = np.flatnonzero(qrels.counts)
    if not len(judged):
        raise InvalidInput(f"{test} judges no query")
    taught = [read_labels(path, **names).counts > 0 for path in _training(folder)]
    others = np.any(taught, axis=0) if taught else np.ones(queries.n, bool)
    others[judged] = False
    rest = np.flatnonzero(others)
    name = folder.resolve().name
    if len(rest) >= 2:
        learned = open_source(queries.take(rest), metric=src.metric)
        tune, learn = split_learn(learned, seed)
        return Parts(name, src, queries.take(judged), tune, learn, qrels=qrels.select(judged))
    if len(judged) < 10:
        raise InvalidInput(f"{folder} must have 10 judged queries at least, as there are no others, got {len(judged)}")
    few, kept = judged[::5], np.setdiff1d(judged, judged[::5])
    made = "the folder; a part of the test queries is tuned on"
    return Parts(name, src, queries.take(kept), queries.take(few), None, qrels=qrels.select(kept), queries_from=made)


def _training(folder: Path) -> list[Path]:
    return [path for name in ("train", "dev") if (path := folder / "qrels" / f"{name}.tsv").is_file()]


def _embeddings(folder: Path, name: str) -> Path:
    for suffix in _SUFFIXES:
        if (path := folder / f"{name}{suffix}").is_file():
            return path
    raise InvalidInput(f"{folder} must have embeddings {name}.npy, or one of {', '.join(_SUFFIXES[1:])}")


def _ids(folder: Path, name: str, rows: EmbeddingSource) -> StrIds:
    path = folder / f"{name}.jsonl"
    try:
        with path.open(encoding="utf-8") as file:
            ids = [str(json.loads(line)["_id"]) for line in file if line.strip()]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidInput(f"{path} must have a JSON object with _id on each line: {error}") from None
    column = build_ids([ids], rows.n, str(path))
    assert isinstance(column, StrIds)
    return column
