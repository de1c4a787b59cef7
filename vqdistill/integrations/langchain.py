"""VqdistillVectorStore: LangChain's vector store over a live store."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vqdistill.documents.document import Document, Id
from vqdistill.errors import InvalidInput
from vqdistill.integrations.diversity import diverse
from vqdistill.integrations.missing import missing
from vqdistill.integrations.options import StoreOptions
from vqdistill.integrations.store import LiveStore
from vqdistill.types import Metric

try:
    from langchain_core.documents import Document as LangChainDocument
    from langchain_core.embeddings import Embeddings
    from langchain_core.vectorstores import VectorStore
except ImportError as error:
    raise missing("LangChain", "langchain", error) from None


class VqdistillVectorStore(VectorStore):
    """Documents and their vectors in one folder; see `LiveStore`.

    Ids are strings; where a store began with an index of integer ids, their decimal digits. Asynchronous methods run
    these in threads, as LangChain's defaults do.

    Parameters
    ----------
    embedding : encodes texts and queries
    store : folder of a store, made if it is not there, or an open `LiveStore`
    options : of a store that is made, or None; see `StoreOptions`
    search : options of every search, such as {"recall": 0.95}; see `Searcher.search`
    """

    def __init__(
        self,
        embedding: Embeddings,
        store: str | Path | LiveStore,
        options: StoreOptions | None = None,
        search: dict[str, Any] | None = None,
    ) -> None:
        self._embedding = embedding
        self.store = store if isinstance(store, LiveStore) else LiveStore(store, options)
        """What holds documents and vectors."""
        self._search = dict(search or {})

    @property
    def embeddings(self) -> Embeddings:
        """What encodes texts and queries."""
        return self._embedding

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        store: str | Path | LiveStore | None = None,
        options: StoreOptions | None = None,
    ) -> VqdistillVectorStore:
        """Make a store of texts; from `compile_at` of them on, their index is compiled at once.

        Parameters
        ----------
        texts, metadatas, ids : as for `add_texts`
        embedding, store, options : as for the class; `store` must be given

        Raises
        ------
        InvalidInput
            If there is no `store`, and as `add_texts`.
        """
        if store is None:
            raise InvalidInput('store must be a folder, such as store="documents.store", got None')
        made = cls(embedding, store, options)
        made.add_texts(texts, metadatas, ids=ids)
        return made

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **_: Any,
    ) -> list[str]:
        """Encode and write texts, replacing those with the same ids.

        Parameters
        ----------
        texts : b of them
        metadatas : b objects of JSON; None = empty ones
        ids : b strings; where None, random ones

        Returns
        -------
        list of str
            Ids of the texts.

        Raises
        ------
        InvalidInput, VqdistillError
            As `LiveStore.put`.
        """
        given = list(texts)
        names = [name or str(uuid.uuid4()) for name in (ids or [None] * len(given))]
        notes = metadatas or [{}] * len(given)
        if not len(given) == len(names) == len(notes):
            raise InvalidInput(
                f"texts, metadatas and ids must be as many, got {len(given)}, {len(notes)} and {len(names)}"
            )
        if given:
            rows = zip(self._keys(names), given, notes, strict=True)
            documents = [Document(key, text, dict(note)) for key, text, note in rows]
            self.store.put(documents, self._embedding.embed_documents(given))
        return names

    def delete(self, ids: list[str] | None = None, **_: Any) -> bool:
        """Delete documents; ids that are not there are passed over. None = all documents."""
        self.store.delete(self.store.documents.ids().tolist() if ids is None else self._keys(ids))
        return True

    def get_by_ids(self, ids: Sequence[str], /) -> list[LangChainDocument]:
        """Return the documents that there are of these ids, in their order."""
        return [_document(found) for found in self.store.documents.get(self._keys(ids)) if found is not None]

    def similarity_search(self, query: str, k: int = 4, filter: Any = None, **options: Any) -> list[LangChainDocument]:
        """Return the k documents most similar to a text.

        Parameters
        ----------
        filter : of metadata, such as {"year": {"$gte": 2020}}; see `documents.filters.as_filter`
        options : of `Searcher.search`
        """
        return [document for document, _ in self.similarity_search_with_score(query, k, filter, **options)]

    def similarity_search_with_score(
        self, query: str, k: int = 4, filter: Any = None, **options: Any
    ) -> list[tuple[LangChainDocument, float]]:
        """As `similarity_search`, with similarities; larger is better."""
        return self.similarity_search_with_score_by_vector(self._embedding.embed_query(query), k, filter, **options)

    def similarity_search_by_vector(
        self, embedding: list[float], k: int = 4, filter: Any = None, **options: Any
    ) -> list[LangChainDocument]:
        """As `similarity_search`, of a vector (d,)."""
        return [
            document for document, _ in self.similarity_search_with_score_by_vector(embedding, k, filter, **options)
        ]

    def similarity_search_with_score_by_vector(
        self, embedding: list[float], k: int = 4, filter: Any = None, **options: Any
    ) -> list[tuple[LangChainDocument, float]]:
        """As `similarity_search_with_score`, of a vector (d,)."""
        (matches,) = self.store.search([embedding], k, where=filter, **self._search | options)
        return [(_document(found), match.score) for match, found in self.store.documents_of(matches)]

    def max_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Any = None,
        **options: Any,
    ) -> list[LangChainDocument]:
        """Return k documents, similar to a text and unlike each other, out of the `fetch_k` most similar.

        Parameters
        ----------
        lambda_mult : weight of similarity against variety, 0..1
        filter, options : as for `similarity_search`
        """
        vector = self._embedding.embed_query(query)
        return self.max_marginal_relevance_search_by_vector(vector, k, fetch_k, lambda_mult, filter, **options)

    def max_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Any = None,
        **options: Any,
    ) -> list[LangChainDocument]:
        """As `max_marginal_relevance_search`, of a vector (d,)."""
        (matches,) = self.store.search([embedding], fetch_k, where=filter, **self._search | options)
        vectors = self.store.require_vectors([match.id for match in matches])
        chosen = [matches[at] for at, _ in diverse(embedding, vectors, k, lambda_mult)]
        return [_document(found) for _, found in self.store.documents_of(chosen)]

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        metric = self.store.options.metric
        if metric == Metric.COSINE.value:
            return lambda score: min(max((1 + score) / 2, 0.0), 1.0)
        if metric == Metric.L2.value:
            return lambda score: float(1 / (1 + np.sqrt(max(-score, 0.0))))
        raise InvalidInput("relevance scores need metric cosine or l2: inner products have no bounds")

    def _keys(self, ids: Iterable[str]) -> list[Id]:
        return self.store.keys(ids)


def _document(found: Document) -> LangChainDocument:
    return LangChainDocument(id=str(found.id), page_content=found.text, metadata=found.metadata)
