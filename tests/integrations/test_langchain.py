"""The LangChain adapter: LangChain's own suite, before and after there is an index, and what is ours beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("langchain_core", reason="pip install 'vqdistill[langchain]'")
suite = pytest.importorskip("langchain_tests.integration_tests.vectorstores", reason="pip install langchain-tests")

from langchain_core.embeddings import DeterministicFakeEmbedding  # noqa: E402

from vqdistill.documents.document import Document  # noqa: E402
from vqdistill.errors import InvalidInput  # noqa: E402
from vqdistill.integrations.langchain import VqdistillVectorStore  # noqa: E402
from vqdistill.integrations.options import StoreOptions  # noqa: E402

EMBEDDING = DeterministicFakeEmbedding(size=suite.EMBEDDING_SIZE)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that has an index, and no rows any more."""
    path = tmp_path_factory.mktemp("langchain") / "template"
    store = VqdistillVectorStore(EMBEDDING, path, StoreOptions(compile_at=256, distill=False))
    store.add_texts([f"text {i}" for i in range(300)])
    assert store.store.index is not None
    store.delete()
    store.store.close()
    return path


class TestExact(suite.VectorStoreIntegrationTests):  # type: ignore[misc]
    @pytest.fixture
    def vectorstore(self, tmp_path: Path) -> Iterator[VqdistillVectorStore]:
        store = VqdistillVectorStore(self.get_embeddings(), tmp_path / "store")
        yield store
        store.store.close()


class TestIndexed(suite.VectorStoreIntegrationTests):  # type: ignore[misc]
    @pytest.fixture
    def vectorstore(self, tmp_path: Path, template: Path) -> Iterator[VqdistillVectorStore]:
        import shutil

        shutil.copytree(template, tmp_path / "store")
        store = VqdistillVectorStore(self.get_embeddings(), tmp_path / "store")
        assert store.store.index is not None
        yield store
        store.store.close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[VqdistillVectorStore]:
    notes = [{"i": i, "even": i % 2 == 0} for i in range(20)]
    made = VqdistillVectorStore.from_texts(
        [f"text {i}" for i in range(20)], EMBEDDING, notes, ids=[f"n{i}" for i in range(20)], store=tmp_path / "store"
    )
    yield made
    made.store.close()


def test_filters_choose_by_metadata(store: VqdistillVectorStore) -> None:
    found = store.similarity_search("text 3", k=20, filter={"even": True, "i": {"$gte": 10}})
    assert sorted(document.metadata["i"] for document in found) == [10, 12, 14, 16, 18]


def test_scores_are_cosines_best_first(store: VqdistillVectorStore) -> None:
    found = store.similarity_search_with_score("text 3", k=20)
    rows = np.array(EMBEDDING.embed_documents([document.page_content for document, _ in found]))
    query = np.array(EMBEDDING.embed_query("text 3"))
    cosines = rows @ query / np.linalg.norm(rows, axis=1) / np.linalg.norm(query)
    np.testing.assert_allclose([score for _, score in found], cosines, atol=1e-6)
    assert found[0][0].id == "n3" and (np.diff(cosines) <= 1e-6).all()


def test_relevance_is_between_nothing_and_one(store: VqdistillVectorStore) -> None:
    scores = [score for _, score in store.similarity_search_with_relevance_scores("text 3", k=20)]
    assert scores[0] == pytest.approx(1) and all(0 <= score <= 1 for score in scores)


def test_variety_leaves_out_what_is_said_already(store: VqdistillVectorStore) -> None:
    store.add_texts(["text 3"] * 4, [{"i": -1}] * 4)
    alike = store.similarity_search("text 3", k=3)
    varied = store.max_marginal_relevance_search("text 3", k=3, fetch_k=24, lambda_mult=0.3)
    assert {document.page_content for document in alike} == {"text 3"}
    assert len({document.page_content for document in varied}) == 3
    with pytest.raises(InvalidInput, match=r"^weight of similarity against variety must be a number in 0..1, got 2$"):
        store.max_marginal_relevance_search("text 3", lambda_mult=2)


def test_what_was_written_is_there_when_it_is_opened_again(store: VqdistillVectorStore) -> None:
    again = VqdistillVectorStore(EMBEDDING, store.store.path)
    assert again.get_by_ids(["n7"])[0].page_content == "text 7"
    assert again.similarity_search("text 7", k=1)[0].id == "n7"
    again.store.close()


def test_a_retriever_takes_search_options(store: VqdistillVectorStore) -> None:
    retriever = store.as_retriever(search_kwargs={"k": 2, "filter": {"even": False}, "coverage": 0.9})
    assert [document.metadata["even"] for document in retriever.invoke("text 3")] == [False, False]
    with pytest.raises(InvalidInput, match="options of a search must be among .*, got speed"):
        store.similarity_search("text 3", speed=2)


def test_an_index_of_integer_ids_is_served_with_its_documents(tmp_path: Path) -> None:
    import vqdistill
    from vqdistill.integrations.store import LiveStore

    texts = [f"text {i}" for i in range(300)]
    rows = np.array(EMBEDDING.embed_documents(texts), np.float32)
    vqdistill.compile(rows, tmp_path / "index", ids=np.arange(1000, 1300), queries="none", distill=False)
    live = LiveStore(tmp_path / "store", index=tmp_path / "index")
    live.describe(Document(1000 + i, text, {"i": i}) for i, text in enumerate(texts))
    store = VqdistillVectorStore(EMBEDDING, live)
    found = store.similarity_search("text 42", k=1, filter={"i": {"$lt": 100}})
    assert [(document.id, document.page_content) for document in found] == [("1042", "text 42")]
    with pytest.raises(InvalidInput, match=r"^ids of .*store must be integers: .*'x'$"):
        store.get_by_ids(["x"])
    live.close()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.add_texts(["a"], [{}, {}]), "texts, metadatas and ids must be as many, got 1, 2 and 1"),
        (
            lambda s: type(s).from_texts(["a"], EMBEDDING),
            'store must be a folder, such as store="documents.store", got None',
        ),
        (lambda s: s.similarity_search("a", k=0), "k must be an integer of at least 1, got 0"),
        (
            lambda s: s.similarity_search("a", filter={"i": {"$near": 1}}),
            "operator of i must be one of $eq, $ne, $lt, $lte, $gt, $gte, $in, $nin, $contains, $exists, $empty, got"
            " '$near'",
        ),
    ],
)
def test_what_cannot_be_used_is_said(store: VqdistillVectorStore, call: Any, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        call(store)
    assert str(caught.value) == message
