"""The document store: what is written comes back, all of it or nothing, under threads, processes and kill -9."""

from __future__ import annotations

import multiprocessing
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqdistill.documents.document import Document
from vqdistill.documents.store import DocumentStore
from vqdistill.errors import CorruptIndex, InvalidInput, VqdistillError

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False, allow_infinity=False))
    | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


def make(path: Path, kind: str = "str", n: int = 5) -> DocumentStore:
    store = DocumentStore(path / "documents.sqlite3", kind)
    store.put(Document(f"d{i}" if kind == "str" else i, f"text {i}", {"i": i}) for i in range(n))
    return store


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with DocumentStore(tmp_path_factory.mktemp("store") / "d") as store:
        yield store


@given(text=TEXTS, metadata=st.dictionaries(TEXTS, JSON, max_size=4), key=TEXTS.filter(bool))
def test_documents_come_back_as_they_went_in(
    shared: DocumentStore, text: str, metadata: dict[str, Any], key: str
) -> None:
    given_ = Document(key, text, metadata)
    shared.put([given_])
    assert shared.get([key]) == [given_]


def test_documents_are_replaced_counted_and_deleted(tmp_path: Path) -> None:
    with make(tmp_path) as store:
        assert store.put([Document("d1", "a"), Document("x", "b"), Document("d1", "c")]) == ["d1", "x"]
        assert [document.id for document in store] == ["d0", "d1", "d2", "d3", "d4", "x"]
        assert store.get(["x", "nobody", "d1"]) == [Document("x", "b"), None, Document("d1", "c")]
        assert store.delete(["d1", "nobody", "d2"]) == 2 and len(store) == 4
        assert store.ids().tolist() == ["d0", "d3", "d4", "x"] and store.ids().dtype.kind == "U"


def test_integer_ids_stay_integers(tmp_path: Path) -> None:
    with make(tmp_path, "int64") as store:
        store.put([Document(np.int64(-(2**63)), "low"), Document(2**63 - 1, "high")])  # type: ignore[arg-type]
        assert store.ids({"i": {"$gte": 3}}).tolist() == [3, 4] and store.ids().dtype == np.int64
        assert [found and found.text for found in store.get([2**63 - 1, -(2**63), 7])] == ["high", "low", None]
        store.put([Document(-(2**63), "low")], np.ones((1, 2), np.float32))
        assert [ids for ids, _ in store.waiting_rows(2)] == [[-(2**63)]]


def test_many_documents_are_read_in_pages(tmp_path: Path) -> None:
    with make(tmp_path, n=2500) as store:
        assert [document.metadata["i"] for document in store.select({"i": {"$gte": 100}})] == list(range(100, 2500))
        found = store.get(f"d{i}" for i in range(2499, -1, -1))
        assert [document and document.metadata["i"] for document in found] == list(range(2499, -1, -1))


def test_a_store_is_what_it_was_when_it_is_opened_again(tmp_path: Path) -> None:
    with make(tmp_path) as store:
        store.configure(colour=["red"])
        revision, documents = store.revision, list(store)
    with DocumentStore(store.path) as again:
        assert (again.revision, list(again), again.setting("colour")) == (revision, documents, ["red"])
        again.put([])
        assert again.revision == revision + 1


def test_rows_wait_until_an_index_has_taken_them(tmp_path: Path) -> None:
    rows = np.arange(12, dtype=np.float32).reshape(3, 4)
    with make(tmp_path) as store:
        store.put([Document(name, "") for name in "cab"], rows)
        ((ids, waiting),) = store.waiting_rows(4)
        assert ids == ["a", "b", "c"]
        np.testing.assert_array_equal(waiting, rows[[1, 2, 0]])
        np.testing.assert_array_equal(store.waiting_vector("c"), rows[0])
        store.drop(["b"], indexed=False)
        store.drop(["c", "d0"], indexed=True)
        assert store.waiting_deletes() == ["c", "d0"] and store.waiting == 3 and store.waiting_vector("c") is None
        with pytest.raises(CorruptIndex, match=r"vector of 'a' must have 12 bytes, got 16$"):
            list(store.waiting_rows(3))
        store.settle()
        assert store.waiting == 0 and len(store) == 8


def test_a_change_is_whole_or_nothing(tmp_path: Path) -> None:
    with make(tmp_path) as store:
        before, revision = list(store), store.revision
        with pytest.raises(RuntimeError, match="stop"), store.change():
            store.put([Document("new", "")])
            store.delete(["d0"])
            raise RuntimeError("stop")
        with pytest.raises(InvalidInput):
            store.put([Document("new", ""), Document("", "")])
        assert list(store) == before and store.revision == revision


def test_a_snapshot_sees_one_state(tmp_path: Path) -> None:
    with make(tmp_path) as store, DocumentStore(store.path) as other:
        with store.snapshot():
            assert len(store) == 5
            other.delete(["d0"])
            assert len(store) == 5 and len(other) == 4
        assert len(store) == 4


def test_threads_share_a_store(tmp_path: Path) -> None:
    failures: list[BaseException] = []

    def work(worker: int) -> None:
        try:
            for i in range(25):
                key = f"w{worker}-{i}"
                store.put([Document(key, key, {"worker": worker})])
                assert store.get([key])[0] == Document(key, key, {"worker": worker})
        except BaseException as error:
            failures.append(error)

    with make(tmp_path) as store:
        before = store.revision
        threads = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures and len(store) == 105 and store.revision == before + 100


WRITE = """
import sys
from vqdistill.documents.document import Document
from vqdistill.documents.store import DocumentStore
with DocumentStore(sys.argv[1]) as store:
    for i in range(20):
        store.put([Document(f"{sys.argv[2]}-{i}", "")])
"""


def test_processes_share_a_store_that_they_all_make(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITE, str(tmp_path / "d")]
    workers = [subprocess.Popen([*command, str(worker)], stderr=subprocess.PIPE) for worker in range(3)]
    errors = [worker.communicate(timeout=60)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0, 0], errors
    with DocumentStore(tmp_path / "d") as store:
        assert len(store) == 60 and store.revision >= 60


def forked(store: DocumentStore, answers: Any) -> None:
    store.put([Document("child", "")])
    answers.put(len(store))


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_process_opens_its_own_connection(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    with make(tmp_path) as store:
        answers = context.Queue()
        child = context.Process(target=forked, args=(store, answers))
        child.start()
        assert answers.get(timeout=60) == 6
        child.join()
        store.put([Document("parent", "")])
        assert child.exitcode == 0 and len(store) == 7
        answers.close()
        answers.join_thread()


KILLED = """
import os, sys
from vqdistill.documents.document import Document
from vqdistill.documents.store import DocumentStore
store = DocumentStore(sys.argv[1])
store.put([Document("kept", "")])
with store.change():
    store.put([Document("lost", "")])
    os.kill(os.getpid(), 9)
"""


def test_a_killed_process_leaves_what_was_written_whole(tmp_path: Path) -> None:
    with make(tmp_path) as store:
        done = subprocess.run([sys.executable, "-c", KILLED, str(store.path)])
        assert done.returncode == -9
        assert store.get(["kept", "lost"]) == [Document("kept", ""), None]
        store.put([Document("after", "")])


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (Document("", ""), "id of a document must be a string that is not empty, got ''"),
        (Document(1, ""), "id of a document must be a string that is not empty, got 1"),
        (Document("\udc80", ""), "id of a document must be a string that is not empty, got '\\udc80'"),
        (Document("a", None), "text of document 'a' must be a string of Unicode, got None"),  # type: ignore[arg-type]
        (Document("a", "\udc80"), "text of document 'a' must be a string of Unicode, got '\\udc80'"),
        (Document("a", "", []), "metadata of document 'a' must be an object, got list"),  # type: ignore[arg-type]
        (Document("a", "", {"b": "\udc80"}), "metadata of document 'a' must be Unicode, got half a surrogate pair"),
        (
            Document("a", "", {"b": {1}}),
            "metadata of document 'a' must be JSON: Object of type set is not JSON serializable",
        ),
    ],
)
def test_what_cannot_be_stored_is_said(shared: DocumentStore, document: Document, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        shared.put([document])
    assert str(caught.value) == message


def test_nan_is_no_json(shared: DocumentStore) -> None:
    with pytest.raises(InvalidInput, match="^metadata of document 'a' must be JSON: Out of range float values"):
        shared.put([Document("a", "", {"b": float("nan")})])


@pytest.mark.parametrize("key", [-1, True, 2**63, "1", 1.0])
def test_integer_ids_are_checked(tmp_path: Path, key: Any) -> None:
    with make(tmp_path, "int64") as store, pytest.raises(InvalidInput) as caught:
        store.delete([key])
    assert str(caught.value) == f"id of a document must be an integer of 64 bits other than -1, got {key!r}"


def test_vectors_are_one_for_each_document(shared: DocumentStore) -> None:
    with pytest.raises(InvalidInput, match="^vectors must be one for each of 1 documents, got 2$"):
        shared.put([Document("a", "")], np.ones((2, 3), np.float32))


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database" * 100)
    with pytest.raises(InvalidInput, match=r"text must be a document store, got another file$"):
        DocumentStore(tmp_path / "text")
    with sqlite3.connect(tmp_path / "other") as db:
        db.execute("CREATE TABLE t (x)")
    db.close()
    with pytest.raises(InvalidInput, match=r"other must be a document store of version 1, got another file$"):
        DocumentStore(tmp_path / "other")
    with pytest.raises(InvalidInput, match=r"^documents must be in a folder that exists, got .*nowhere/d$"):
        DocumentStore(tmp_path / "nowhere" / "d")
    with pytest.raises(InvalidInput, match="^kind of ids must be one of str, int64, got 'float'$"):
        DocumentStore(tmp_path / "d", "float")
    with (
        make(tmp_path) as store,
        pytest.raises(InvalidInput, match=r"^kind of ids must be str, as .* has it, got"),
    ):
        DocumentStore(store.path, "int64")


def test_a_damaged_file_is_an_error_of_ours(tmp_path: Path) -> None:
    with make(tmp_path, n=3000) as store:
        pass
    data = bytearray(store.path.read_bytes())
    data[8192:] = b"\xff" * (len(data) - 8192)
    store.path.write_bytes(data)
    with pytest.raises(VqdistillError, match=r"^documents .* cannot be used: "), DocumentStore(store.path) as damaged:
        list(damaged)


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = make(tmp_path)
    store.close()
    store.close()
    with pytest.raises(InvalidInput, match=r"^documents .*documents.sqlite3 must be open, but they are closed$"):
        len(store)
