"""VqdistillDocumentStore and its embedding retriever, for Haystack, over a live store."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from vqdistill.documents.document import Document as Stored
from vqdistill.documents.filters import All, AnyOf, Compare, Filter, In, Not
from vqdistill.errors import InvalidInput
from vqdistill.integrations.missing import missing
from vqdistill.integrations.options import StoreOptions
from vqdistill.integrations.store import LiveStore

try:
    from haystack import Document, component, default_from_dict, default_to_dict
    from haystack.document_stores.errors import DuplicateDocumentError
    from haystack.document_stores.types import DuplicatePolicy, FilterPolicy, apply_filter_policy
    from haystack.errors import FilterError
except ImportError as error:
    raise missing("Haystack", "haystack", error) from None


class VqdistillDocumentStore:
    """Documents and their embeddings in one folder; see `LiveStore`. Documents may have no embedding.

    Parameters
    ----------
    path : folder, made if it is not there
    options : of a store that is made, by the names of `StoreOptions`; None = as the folder has them, or the defaults
    search : options of every retrieval, such as {"recall": 0.95}; see `Searcher.search`
    """

    def __init__(self, path: str, options: dict[str, Any] | None = None, search: dict[str, Any] | None = None) -> None:
        self.path, self.options, self.search = str(path), options, search
        self.store = LiveStore(path, None if options is None else StoreOptions.from_json(options))
        """What holds documents and embeddings."""
        if self.store.documents.kind != "str":
            raise InvalidInput(f"ids of {path} must be strings, as those of documents, got integers")

    def to_dict(self) -> dict[str, Any]:
        """Return what makes this store again: its folder and options, not its documents."""
        made: dict[str, Any] = default_to_dict(self, path=self.path, options=self.options, search=self.search)
        return made

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> VqdistillDocumentStore:
        """Open the store that `to_dict` has described."""
        made: VqdistillDocumentStore = default_from_dict(cls, data)
        return made

    def close(self) -> None:
        """Close the folder."""
        self.store.close()

    def count_documents(self) -> int:
        """Return how many documents there are."""
        return len(self.store)

    def count_documents_by_filter(self, filters: dict[str, Any]) -> int:
        """Return how many documents pass filters."""
        return self.store.documents.count(as_filter(filters))

    def filter_documents(self, filters: dict[str, Any] | None = None) -> list[Document]:
        """Return the documents that pass filters, without embeddings; None = all."""
        return [_document(found) for found in self.store.documents.select(as_filter(filters) if filters else None)]

    def write_documents(self, documents: list[Document], policy: DuplicatePolicy = DuplicatePolicy.NONE) -> int:
        """Write documents, and return how many.

        Parameters
        ----------
        policy : what to do with ids that are there: OVERWRITE, SKIP, or FAIL, which NONE stands for; then nothing is
            written

        Raises
        ------
        DuplicateDocumentError
            If an id is there, or twice among these, and is to be refused.
        InvalidInput
            If these are no documents; and as `LiveStore.put`.
        """
        if not isinstance(documents, list) or not all(isinstance(one, Document) for one in documents):
            raise InvalidInput(f"documents must be a list of Haystack's documents, got {documents!r:.80}")
        if policy is not DuplicatePolicy.OVERWRITE:
            documents = self._new(documents, policy is DuplicatePolicy.SKIP)
        if documents:
            self.store.put([_stored(one) for one in documents], [one.embedding for one in documents])
        return len(documents)

    def _new(self, documents: list[Document], skipping: bool) -> list[Document]:
        known = self.store.documents.get([one.id for one in documents])
        seen = {found.id for found in known if found is not None}
        fresh = []
        for one in documents:
            if one.id not in seen:
                fresh.append(one)
            elif not skipping:
                raise DuplicateDocumentError(f"document {one.id!r} is in {self.path} already")
            seen.add(one.id)
        return fresh

    def delete_documents(self, document_ids: list[str]) -> None:
        """Delete documents; ids that are not there are passed over."""
        self.store.delete(document_ids)

    def delete_all_documents(self) -> None:
        """Delete all documents."""
        self.store.delete(self.store.documents.ids().tolist())

    def delete_by_filter(self, filters: dict[str, Any]) -> int:
        """Delete the documents that pass filters, and return how many."""
        return self.store.delete(self.store.documents.ids(as_filter(filters)).tolist())

    def update_by_filter(self, filters: dict[str, Any], meta: dict[str, Any]) -> int:
        """Write `meta` into that of all documents that pass filters, and return how many."""
        found = list(self.store.documents.select(as_filter(filters)))
        changed = [
            Stored(one.id, one.text, one.metadata | {"meta": one.metadata.get("meta", {}) | meta}) for one in found
        ]
        return len(self.store.describe(changed))

    def embedding_retrieval(
        self,
        query_embedding: list[float],
        filters: dict[str, Any] | None = None,
        top_k: int = 10,
        return_embedding: bool = False,
    ) -> list[Document]:
        """Return the documents most similar to an embedding, with their scores.

        Parameters
        ----------
        query_embedding : (d,)
        filters : in Haystack's form; None = all documents
        top_k : how many
        return_embedding : whether documents have their embeddings, scaled to unit norm under cosine

        Raises
        ------
        InvalidInput, FilterError
            If a filter is none; and as `LiveStore.search`.
        """
        where = as_filter(filters) if filters else None
        (matches,) = self.store.search([query_embedding], top_k, where=where, **self.search or {})
        vectors: Iterable[Any] = [None] * len(matches)
        if return_embedding:
            vectors = (None if row is None else row.tolist() for row in self.store.vectors(one.id for one in matches))
        found = zip(self.store.documents_of(matches), vectors, strict=True)
        return [_document(document, match.score, vector) for (match, document), vector in found]


@component
class VqdistillEmbeddingRetriever:
    """Retrieves the documents of a `VqdistillDocumentStore` that are most similar to an embedding.

    Parameters
    ----------
    document_store : where they are
    filters : in Haystack's form; None = all documents
    top_k : how many
    return_embedding : whether documents have their embeddings
    filter_policy : whether filters of a run replace these, or are merged with them
    """

    def __init__(
        self,
        document_store: VqdistillDocumentStore,
        filters: dict[str, Any] | None = None,
        top_k: int = 10,
        return_embedding: bool = False,
        filter_policy: FilterPolicy = FilterPolicy.REPLACE,
    ) -> None:
        if not isinstance(document_store, VqdistillDocumentStore):
            raise InvalidInput(f"document_store must be a VqdistillDocumentStore, got {type(document_store).__name__}")
        self.document_store = document_store
        self.filters = filters
        self.top_k = top_k
        self.return_embedding = return_embedding
        self.filter_policy = filter_policy

    def to_dict(self) -> dict[str, Any]:
        """Return what makes this component again."""
        made: dict[str, Any] = default_to_dict(
            self,
            document_store=self.document_store.to_dict(),
            filters=self.filters,
            top_k=self.top_k,
            return_embedding=self.return_embedding,
            filter_policy=self.filter_policy.value,
        )
        return made

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> VqdistillEmbeddingRetriever:
        """Make the component that `to_dict` has described."""
        options = dict(data["init_parameters"])
        if isinstance(options.get("document_store"), dict):
            options["document_store"] = VqdistillDocumentStore.from_dict(options["document_store"])
        if "filter_policy" in options:
            options["filter_policy"] = FilterPolicy.from_str(options["filter_policy"])
        made: VqdistillEmbeddingRetriever = default_from_dict(cls, data | {"init_parameters": options})
        return made

    @component.output_types(documents=list[Document])
    def run(
        self, query_embedding: list[float], filters: dict[str, Any] | None = None, top_k: int | None = None
    ) -> dict[str, list[Document]]:
        """Retrieve documents.

        Parameters
        ----------
        query_embedding : (d,)
        filters, top_k : instead of those of the component, or merged with them
        """
        return {
            "documents": self.document_store.embedding_retrieval(
                query_embedding,
                apply_filter_policy(self.filter_policy, self.filters, filters),
                self.top_k if top_k is None else top_k,
                self.return_embedding,
            )
        }

    @component.output_types(documents=list[Document])
    async def run_async(
        self, query_embedding: list[float], filters: dict[str, Any] | None = None, top_k: int | None = None
    ) -> dict[str, list[Document]]:
        """As `run`, in a thread."""
        found: dict[str, list[Document]] = await asyncio.to_thread(self.run, query_embedding, filters, top_k)
        return found


def as_filter(filters: Any) -> Filter:
    """Translate Haystack's filters, of fields of `meta` and of `id`.

    Dates are compared as texts: they must be written alike, in ISO form and the same time zone.

    Raises
    ------
    FilterError
        If a part is missing, or a value does not fit its operator.
    InvalidInput
        If a value is none of JSON.
    """
    if not isinstance(filters, dict):
        raise FilterError(f"a filter must be an object, got {filters!r}")
    if "field" in filters:
        return _comparison(filters)
    _require(filters, "operator", "conditions")
    if not isinstance(filters["conditions"], list):
        raise FilterError(f"conditions of a filter must be a list, got {filters['conditions']!r}")
    for part in filters["conditions"]:
        if not isinstance(part, dict) or not part.keys() & {"field", "conditions"}:
            raise FilterError(f"a condition of a filter must have a field, got {part!r}")
    parts = tuple(as_filter(part) for part in filters["conditions"])
    made = {"AND": All(parts), "OR": AnyOf(parts), "NOT": Not(All(parts))}
    if filters["operator"] not in made:
        raise FilterError(f"operator of a filter must be one of {', '.join(made)}, got {filters['operator']!r}")
    return made[filters["operator"]]  # type: ignore[return-value]


def _comparison(condition: dict[str, Any]) -> Filter:
    _require(condition, "operator", "value")
    name, op, value = condition["field"], condition["operator"], condition["value"]
    if name == "content":
        raise FilterError("field of a filter must be id or in meta, got content")
    field = name if name == "id" or str(name).startswith("meta.") else f"meta.{name}"
    if isinstance(value, datetime):
        value = value.isoformat()
    if op in ("in", "not in"):
        if not isinstance(value, list):
            raise FilterError(f"filter on {name} by {op!r} must have a list, got {value!r}")
        found = In(field, tuple(value))
        return found if op == "in" else Not(found)
    if op in ("<", "<=", ">", ">="):
        if value is None:
            return AnyOf(())  # nothing is above or below null
        if isinstance(value, (bool, list)) or (isinstance(value, str) and not _is_date(value)):
            raise FilterError(f"filter on {name} by {op!r} must have a number or a date in ISO form, got {value!r}")
    elif op not in ("==", "!="):
        raise FilterError(f"operator on {name} must be one of ==, !=, <, <=, >, >=, in, not in, got {op!r}")
    return Compare(field, op, value)


def _require(part: dict[str, Any], *names: str) -> None:
    for name in names:
        if name not in part:
            raise FilterError(f"a filter must have {name!r}, got {part!r}")


def _is_date(text: str) -> bool:
    try:
        datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return False
    return True


def _stored(document: Document) -> Stored:
    kept = document.to_dict(flatten=False)
    beside = {name: kept[name] for name in ("blob", "sparse_embedding") if kept.get(name) is not None}
    # No content is another thing than an empty one.
    beside |= {"has_content": False} if document.content is None else {}
    return Stored(document.id, document.content or "", {"id": document.id, "meta": document.meta} | beside)


def _document(found: Stored, score: float | None = None, embedding: Any = None) -> Document:
    kept = dict(found.metadata)
    content = found.text if kept.pop("has_content", True) else None
    made: Document = Document.from_dict(
        {"id": found.id, "meta": {}} | kept | {"content": content, "score": score, "embedding": embedding}
    )
    return made
