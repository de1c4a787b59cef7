"""The Haystack adapter: Haystack's own suite, and what is ours beside it, before and after there is an index."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("haystack", reason="pip install 'vqdistill[haystack]'")
suite = pytest.importorskip("haystack.testing.document_store", reason="pip install 'vqdistill[haystack]'")

from haystack import Document, Pipeline  # noqa: E402
from haystack.dataclasses import ByteStream  # noqa: E402
from haystack.document_stores.errors import DuplicateDocumentError  # noqa: E402
from haystack.document_stores.types import DuplicatePolicy, FilterPolicy  # noqa: E402
from haystack.errors import FilterError  # noqa: E402

from vqdistill.errors import InvalidInput  # noqa: E402
from vqdistill.integrations.haystack import VqdistillDocumentStore, VqdistillEmbeddingRetriever  # noqa: E402

D = 16
SMALL = {"compile_at": 256, "distill": False, "ram": "16B/vec"}
ROWS = np.random.default_rng(0).standard_normal((300, D)).astype(np.float32)


def documents(n: int) -> list[Document]:
    return [
        Document(id=f"n{i}", content=f"text {i}", meta={"i": i, "even": i % 2 == 0}, embedding=ROWS[i].tolist())
        for i in range(n)
    ]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 300 documents that has an index."""
    path = tmp_path_factory.mktemp("haystack") / "template"
    store = VqdistillDocumentStore(str(path), SMALL)
    store.write_documents(documents(300))
    assert store.store.index is not None
    store.close()
    return path


class Suite(suite.DocumentStoreBaseExtendedTests):  # type: ignore[misc]
    @staticmethod
    def assert_documents_are_equal(received: list[Document], expected: list[Document]) -> None:
        """Embeddings are returned only where they are asked for."""

        def bare(found: list[Document]) -> list[Any]:
            return [one.to_dict(flatten=False) | {"embedding": None} for one in sorted(found, key=lambda one: one.id)]

        assert bare(received) == bare(expected)

    def test_write_documents(self, document_store: VqdistillDocumentStore) -> None:
        one = Document(content="test doc")
        assert document_store.write_documents([one]) == 1
        with pytest.raises(DuplicateDocumentError):
            document_store.write_documents([one])


class TestSuite(Suite):
    @pytest.fixture
    def document_store(self, tmp_path: Path) -> Iterator[VqdistillDocumentStore]:
        store = VqdistillDocumentStore(str(tmp_path / "store"))
        yield store
        store.close()


@pytest.fixture(params=["exact", "indexed"])
def store(request: pytest.FixtureRequest, tmp_path: Path, template: Path) -> Iterator[VqdistillDocumentStore]:
    if request.param == "indexed":
        shutil.copytree(template, tmp_path / "store")
    made = VqdistillDocumentStore(str(tmp_path / "store"))
    if request.param == "exact":
        made.write_documents(documents(20))
    yield made
    made.close()


def test_documents_are_found_by_embedding_and_filter(store: VqdistillDocumentStore) -> None:
    best, *_ = store.embedding_retrieval(ROWS[3].tolist(), top_k=3)
    assert (best.id, best.content, best.meta, best.embedding) == ("n3", "text 3", {"i": 3, "even": False}, None)
    assert best.score == pytest.approx(1)
    even = {"field": "meta.even", "operator": "==", "value": True}
    few = {"operator": "AND", "conditions": [even, {"field": "meta.i", "operator": "<", "value": 10}]}
    assert {one.id for one in store.embedding_retrieval(ROWS[3].tolist(), few)} == {"n0", "n2", "n4", "n6", "n8"}
    assert store.count_documents_by_filter(few) == 5
    (found,) = store.embedding_retrieval(ROWS[3].tolist(), top_k=1, return_embedding=True)
    np.testing.assert_allclose(found.embedding, ROWS[3] / np.linalg.norm(ROWS[3]), atol=1e-6)


def test_all_that_a_document_has_comes_back(store: VqdistillDocumentStore) -> None:
    given = [
        Document(id="blob", blob=ByteStream(b"\x00\x01", meta={"a": 1}, mime_type="x/y"), meta={"z": None}),
        Document(id="empty", content=""),
    ]
    store.write_documents(given)
    back = [one for one in store.filter_documents() if one.id in ("blob", "empty")]
    assert back == given and back[0].content is None


def test_a_duplicate_writes_nothing(store: VqdistillDocumentStore) -> None:
    n = store.count_documents()
    pair = [Document(id="new", content="a"), Document(id="n1", content="b")]
    with pytest.raises(DuplicateDocumentError, match=r"^document 'n1' is in .*store already$"):
        store.write_documents(pair, DuplicatePolicy.FAIL)
    assert store.count_documents() == n
    assert store.write_documents(pair, DuplicatePolicy.SKIP) == 1 and store.count_documents() == n + 1


def test_a_pipeline_is_written_read_and_run(store: VqdistillDocumentStore) -> None:
    even = {"field": "meta.even", "operator": "==", "value": True}
    pipeline = Pipeline()
    pipeline.add_component("retriever", VqdistillEmbeddingRetriever(store, even, 2, filter_policy=FilterPolicy.MERGE))
    copy = Pipeline.loads(pipeline.dumps(), allowed_modules=["vqdistill.integrations.haystack"])
    low = {"field": "meta.i", "operator": "<", "value": 4}
    run = {"retriever": {"query_embedding": ROWS[3].tolist(), "filters": low, "top_k": 9}}
    for one in (pipeline, copy):
        assert {found.id for found in one.run(run)["retriever"]["documents"]} == {"n0", "n2"}
    retriever = copy.get_component("retriever")
    assert (retriever.top_k, retriever.filters, retriever.filter_policy) == (2, even, FilterPolicy.MERGE)
    found = asyncio.run(retriever.run_async(ROWS[4].tolist()))["documents"]
    assert found[0].id == "n4" and len(found) == 2
    retriever.document_store.close()


def test_a_store_is_described_and_opened_again(tmp_path: Path) -> None:
    options = {"metric": "ip", "compile_at": None}
    store = VqdistillDocumentStore(str(tmp_path / "store"), options, {"coverage": 0.9})
    described = store.to_dict()
    assert described["init_parameters"] == {
        "path": str(tmp_path / "store"),
        "options": options,
        "search": {"coverage": 0.9},
    }
    again = VqdistillDocumentStore.from_dict(described)
    assert again.store.options == store.store.options
    store.close()
    again.close()


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ("x", "a filter must be an object, got 'x'"),
        ({"operator": "XOR", "conditions": []}, "operator of a filter must be one of AND, OR, NOT, got 'XOR'"),
        ({"operator": "AND", "conditions": 3}, "conditions of a filter must be a list, got 3"),
        (
            {"field": "meta.i", "operator": "~", "value": 1},
            "operator on meta.i must be one of ==, !=, <, <=, >, >=, in, not in, got '~'",
        ),
        (
            {"field": "content", "operator": "==", "value": "x"},
            "field of a filter must be id or in meta, got content",
        ),
        (
            {"field": "meta.i", "operator": ">", "value": "tomorrow"},
            "filter on meta.i by '>' must have a number or a date in ISO form, got 'tomorrow'",
        ),
    ],
)
def test_bad_filters_are_refused_in_a_sentence(tmp_path: Path, filters: Any, message: str) -> None:
    store = VqdistillDocumentStore(str(tmp_path / "store"))
    with pytest.raises(FilterError) as caught:
        store.filter_documents(filters)
    assert str(caught.value) == message
    store.close()


def test_what_is_no_store_or_document_is_refused(store: VqdistillDocumentStore) -> None:
    with pytest.raises(InvalidInput, match="^document_store must be a VqdistillDocumentStore, got str$"):
        VqdistillEmbeddingRetriever("store")  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match=r"^documents must be a list of Haystack's documents, got \['x'\]$"):
        store.write_documents(["x"])
