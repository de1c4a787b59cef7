"""VqdistillLlamaStore: LlamaIndex's vector store over a live store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vqdistill.documents.document import Document
from vqdistill.documents.filters import All, AnyOf, Compare, Contains, Empty, Filter, In, Not
from vqdistill.errors import InvalidInput
from vqdistill.integrations.diversity import diverse
from vqdistill.integrations.missing import missing
from vqdistill.integrations.options import StoreOptions
from vqdistill.integrations.store import LiveStore

try:
    from llama_index.core.bridge.pydantic import PrivateAttr
    from llama_index.core.schema import BaseNode, MetadataMode
    from llama_index.core.vector_stores.types import (
        BasePydanticVectorStore,
        FilterCondition,
        FilterOperator,
        MetadataFilters,
        VectorStoreQuery,
        VectorStoreQueryMode,
        VectorStoreQueryResult,
    )
    from llama_index.core.vector_stores.utils import metadata_dict_to_node, node_to_metadata_dict
except ImportError as error:
    raise missing("LlamaIndex", "llamaindex", error) from None

_FETCHED = 4
"""Candidates for each result of a query for variety, as LlamaIndex's other stores have it."""


class VqdistillLlamaStore(BasePydanticVectorStore):
    """Nodes and their vectors in one folder; see `LiveStore`. All is on disk as soon as a call returns.

    Parameters
    ----------
    store : folder of a store, made if it is not there, or an open `LiveStore` with string ids
    options : of a store that is made, or None; see `StoreOptions`
    search : options of every query, such as {"recall": 0.95}; see `Searcher.search`
    """

    stores_text: bool = True
    is_embedding_query: bool = True
    _store: LiveStore = PrivateAttr()
    _search: dict[str, Any] = PrivateAttr()

    def __init__(
        self,
        store: str | Path | LiveStore,
        options: StoreOptions | None = None,
        search: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(stores_text=True)
        self._store = store if isinstance(store, LiveStore) else LiveStore(store, options)
        if self._store.documents.kind != "str":
            raise InvalidInput(f"ids of {self._store.path} must be strings, as those of nodes, got integers")
        self._search = dict(search or {})

    @classmethod
    def from_path(cls, path: str | Path, search: dict[str, Any] | None = None) -> VqdistillLlamaStore:
        """Open the store in a folder that has one.

        Raises
        ------
        InvalidInput
            If there is none.
        """
        if not LiveStore.is_at(path):
            raise InvalidInput(f"{path} must be the folder of a store, got none there")
        return cls(path, search=search)

    @classmethod
    def class_name(cls) -> str:
        """Name by which LlamaIndex knows the class."""
        return "VqdistillLlamaStore"

    @property
    def client(self) -> LiveStore:
        """What holds nodes and vectors."""
        return self._store

    def add(self, nodes: Sequence[BaseNode], **_: Any) -> list[str]:
        """Write nodes with their embeddings, replacing those with the same ids, and return the ids."""
        documents = [
            Document(
                node.node_id,
                node.get_content(metadata_mode=MetadataMode.NONE),
                node_to_metadata_dict(node, remove_text=True, flat_metadata=False),
            )
            for node in nodes
        ]
        if documents:
            self._store.put(documents, [node.get_embedding() for node in nodes])
        return [node.node_id for node in nodes]

    def delete(self, ref_doc_id: str, **_: Any) -> None:
        """Delete the nodes of a document."""
        self._store.delete(self._store.documents.ids(Compare("ref_doc_id", "==", ref_doc_id)).tolist())

    def delete_nodes(self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None, **_: Any) -> None:
        """Delete the nodes that have one of these ids, and pass the filters."""
        self._store.delete([document.id for document in self._chosen(node_ids, filters)])

    def get_nodes(self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None) -> list[BaseNode]:
        """Return the nodes that have one of these ids, and pass the filters."""
        return [_node(document) for document in self._chosen(node_ids, filters)]

    def clear(self) -> None:
        """Delete all nodes."""
        self._store.delete(self._store.documents.ids().tolist())

    def query(self, query: VectorStoreQuery, **options: Any) -> VectorStoreQueryResult:
        """Find the nodes most similar to a vector, by mode `default` or `mmr`.

        Raises
        ------
        InvalidInput
            If the mode is another one, there is no vector, or a filter cannot be had; and as `Searcher.search`.
        """
        if query.query_embedding is None:
            raise InvalidInput("query_embedding must be a vector, got None")
        if query.mode not in (VectorStoreQueryMode.DEFAULT, VectorStoreQueryMode.MMR):
            raise InvalidInput(f"mode must be one of default, mmr, got {query.mode.value!r}")
        wanted = [] if query.filters is None else [as_filter(query.filters)]
        if query.doc_ids:
            wanted.append(In("ref_doc_id", tuple(query.doc_ids)))
        varied = query.mode == VectorStoreQueryMode.MMR
        k = query.similarity_top_k
        weight = options.pop("mmr_threshold", query.mmr_threshold)
        (matches,) = self._store.search(
            [query.query_embedding],
            _FETCHED * k if varied else k,
            where=All(tuple(wanted)) if wanted else None,
            ids=query.node_ids or None,
            **self._search | options,
        )
        scores = [match.score for match in matches]
        if varied:
            vectors = self._store.require_vectors([match.id for match in matches])
            chosen = diverse(query.query_embedding, vectors, k, 0.5 if weight is None else weight)
            matches, scores = [matches[at] for at, _ in chosen], [gain for _, gain in chosen]
        nodes = [_node(document) for _, document in self._store.documents_of(matches)]
        return VectorStoreQueryResult(nodes=nodes, similarities=scores, ids=[node.node_id for node in nodes])

    def persist(self, persist_path: str = "", fs: Any = None) -> None:
        """Do nothing: what a call has written is on disk when it returns, in the store's own folder."""

    def _chosen(self, node_ids: list[str] | None, filters: MetadataFilters | None) -> list[Document]:
        where = None if filters is None else as_filter(filters)
        if node_ids is None:
            return list(self._store.documents.select(where))
        passing = None if where is None else set(self._store.documents.ids(where).tolist())
        found = [document for document in self._store.documents.get(node_ids) if document is not None]
        return found if passing is None else [document for document in found if document.id in passing]


def as_filter(filters: MetadataFilters) -> Filter:
    """Translate LlamaIndex's filters; keys are names in the metadata, dots and all.

    Raises
    ------
    InvalidInput
        If an operator is `text_match_insensitive`, which is not to be had, or a value does not fit its operator.
    """
    parts = tuple(as_filter(part) if isinstance(part, MetadataFilters) else _one(part) for part in filters.filters)
    if filters.condition == FilterCondition.OR:
        return AnyOf(parts)
    if filters.condition == FilterCondition.NOT:
        return Not(AnyOf(parts))
    return All(parts)


def _one(part: Any) -> Filter:
    field, op, value = (part.key,), part.operator, part.value
    if op == FilterOperator.IS_EMPTY:
        return Empty(field)
    if op in (FilterOperator.IN, FilterOperator.NIN):
        found = In(field, value)
        return found if op == FilterOperator.IN else Not(found)
    if op in (FilterOperator.ANY, FilterOperator.ALL):
        if not isinstance(value, list):
            raise InvalidInput(f"filter on {part.key} must have a list of values, got {value!r}")
        contained = tuple(Contains(field, one) for one in value)
        return AnyOf(contained) if op == FilterOperator.ANY else All(contained)
    if op in (FilterOperator.CONTAINS, FilterOperator.TEXT_MATCH):
        return Contains(field, value)
    if op == FilterOperator.TEXT_MATCH_INSENSITIVE:
        raise InvalidInput(f"filter on {part.key} must have another operator than text_match_insensitive")
    return Compare(field, op.value, value)


def _node(document: Document) -> BaseNode:
    return metadata_dict_to_node(document.metadata, document.text)
