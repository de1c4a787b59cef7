"""Dense retrieval as BEIR evaluates it: texts of queries in, a run {query: {document: score}} out; needs no package."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vqdistill.errors import InvalidInput
from vqdistill.searcher import Searcher
from vqdistill.searcher import open as open_searcher
from vqdistill.types import Metric, as_f32_rows

Encoder = Callable[[list[str]], Any]
"""Texts (b,) to vectors (b, d) of any real dtype."""
SCORES = {"cos_sim": "cosine", "dot": "ip"}
"""What BEIR calls the metrics."""


class BeirModel(Protocol):
    """An encoder as BEIR has it."""

    def encode_queries(self, queries: list[str], batch_size: int, **options: Any) -> Any:
        """Vectors (q, d) of queries."""

    def encode_corpus(self, corpus: list[dict[str, str]], batch_size: int, **options: Any) -> Any:
        """Vectors (b, d) of documents, each with `title` and `text`."""


def run(
    index: Searcher,
    encoder: Encoder,
    queries: Mapping[str, str],
    k: int = 100,
    *,
    batch: int = 256,
    skip_self: bool = False,
    **options: Any,
) -> dict[str, dict[str, float]]:
    """Search an index for texts, and return a run as ir-measures, ranx and pytrec_eval take it.

    Parameters
    ----------
    index : an open index; its ids, as strings, name the documents
    encoder : texts (b,) to vectors (b, d), in the space of the index
    queries : texts by query id
    k : results per query, fewer where the index has fewer
    batch : queries encoded and searched together
    skip_self : leave out the document that has the query's own id, as BEIR does
    options : of `Searcher.search`

    Returns
    -------
    dict
        {query id: {document id: score}}, best first.

    Raises
    ------
    InvalidInput
        If `batch` is no positive integer, or there is not one vector for each text; and as `Searcher.search`.
    """
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise InvalidInput(f"batch must be a positive integer, got {batch!r}")
    names, found = list(queries), {}
    n = index.reader.manifest.n
    depth = k if not skip_self or not isinstance(k, int) else k + 1
    for begin in range(0, len(names), batch):
        part = names[begin : begin + batch]
        vectors = _encoded(encoder([queries[name] for name in part]), len(part), "queries")
        hits = index.search(vectors, min(depth, n), **options)
        for name, scores, ids in zip(part, hits.scores.tolist(), hits.ids.tolist(), strict=True):
            pairs = ((str(key), score) for key, score in zip(ids, scores, strict=True) if score > -np.inf)
            kept = [(key, score) for key, score in pairs if not (skip_self and key == name)]
            found[name] = dict(kept[:k])
    return found


class BeirSearch:
    """What `beir.retrieval.evaluation.EvaluateRetrieval` takes as its retriever: compiles a corpus, and searches it.

    Parameters
    ----------
    model : encodes queries and documents
    batch_size : texts encoded together
    path : directory of the index to make; must not exist. None = one that is gone after the search
    options : of `compile`, such as `ram` or `distill`
    search : of `Searcher.search`, such as `recall`
    """

    def __init__(
        self,
        model: BeirModel,
        batch_size: int = 128,
        *,
        path: str | Path | None = None,
        search: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self.model = model
        self.batch_size = batch_size
        self.path = None if path is None else Path(path)
        self.results: dict[str, dict[str, float]] = {}
        """Run of the last search."""
        self._search, self._options = dict(search or {}), options

    def search(
        self,
        corpus: Mapping[str, dict[str, str]],
        queries: Mapping[str, str],
        top_k: int,
        score_function: str = "cos_sim",
        **options: Any,
    ) -> dict[str, dict[str, float]]:
        """Encode and compile a corpus, and search it.

        Parameters
        ----------
        corpus : documents by id, each with `text` and perhaps `title`
        queries : texts by query id
        top_k : results per query
        score_function : "cos_sim" or "dot"
        options : for the model's `encode_corpus` and `encode_queries`

        Returns
        -------
        dict
            {query id: {document id: score}}, best first, without a document of the query's own id.

        Raises
        ------
        InvalidInput
            If the score function is another one, the corpus is empty, or the model returns other than one vector a
            text; and as `compile` and `Searcher.search`.
        """
        # Here, because it loads what only training needs.
        from vqdistill.compiler.build import compile

        if score_function not in SCORES:
            raise InvalidInput(f"score_function must be one of {', '.join(SCORES)}, got {score_function!r}")
        if not corpus:
            raise InvalidInput("corpus must have documents, got none")
        with tempfile.TemporaryDirectory(prefix="vqdistill-") as folder:
            path = Path(folder) / "index" if self.path is None else self.path
            vectors = self._encode_corpus(corpus, Path(folder) / "corpus.npy", options)
            metric = Metric(SCORES[score_function]).value
            try:
                compile(vectors, path, ids=list(corpus), metric=metric, **{"queries": "none"} | self._options)
            finally:
                shutil.rmtree(f"{path}.cache", ignore_errors=True)

            def encode(texts: list[str]) -> Any:
                return self.model.encode_queries(texts, batch_size=self.batch_size, **options)

            searcher = open_searcher(path)
            self.results = run(searcher, encode, queries, top_k, skip_self=True, **self._search)
        return self.results

    def _encode_corpus(self, corpus: Mapping[str, dict[str, str]], file: Path, options: Mapping[str, Any]) -> Path:
        """Write the vectors of a corpus to an .npy file, a batch at a time: it need not fit in memory."""
        documents: Sequence[dict[str, str]] = list(corpus.values())
        table = None
        for begin in range(0, len(documents), self.batch_size):
            part = list(documents[begin : begin + self.batch_size])
            rows = _encoded(self.model.encode_corpus(part, batch_size=self.batch_size, **options), len(part), "corpus")
            if table is None:
                table = np.lib.format.open_memmap(file, "w+", np.dtype("<f4"), (len(documents), rows.shape[1]))
            table[begin : begin + len(part)] = as_f32_rows(rows, "corpus", table.shape[1])
        del table
        return file


def _encoded(vectors: Any, n: int, name: str) -> Any:
    rows = as_f32_rows(vectors, name)
    if len(rows) != n:
        raise InvalidInput(f"{name} must be encoded as one vector a text, got {len(rows)} of {n} texts")
    return rows
