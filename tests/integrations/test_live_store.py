"""The live store: the same before and after there is an index, whatever stops in between, and whoever else uses it."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vqdistill
from tests.searching import exact_scores
from vqdistill.documents.document import Document
from vqdistill.errors import InvalidInput, VqdistillError
from vqdistill.index.locks import lock_writer
from vqdistill.index.opening import open_index
from vqdistill.index.update import IndexUpdater
from vqdistill.index.verify import verify
from vqdistill.integrations import store as store_module
from vqdistill.integrations.locks import exclusive
from vqdistill.integrations.options import StoreOptions
from vqdistill.integrations.store import LiveStore

N, D = 400, 16
METRICS = ("cosine", "ip", "l2")


def rows_of(n: int, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((8, D))
    return (centres[rng.integers(0, 8, n)] + 0.5 * rng.standard_normal((n, D))).astype(np.float32) * 3


ROWS, QUERIES = rows_of(N), rows_of(20, 1)


def documents(numbers: Any) -> list[Document]:
    return [Document(f"d{i}", f"text {i}", {"i": int(i), "third": i % 3 == 0}) for i in numbers]


def options(metric: str = "cosine", **changes: Any) -> StoreOptions:
    return StoreOptions(**{"metric": metric, "compile_at": None, "distill": False} | changes)


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Stores of all metrics with N rows in an index."""
    made = {}
    for metric in METRICS:
        made[metric] = tmp_path_factory.mktemp("live") / metric
        with LiveStore(made[metric], options(metric)) as store:
            store.put(documents(range(N)), ROWS)
            store.compile()
    return made


@pytest.fixture(params=["exact", "indexed"])
def phase(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def store(tmp_path: Path, templates: dict[str, Path], phase: str) -> Iterator[LiveStore]:
    """A store of N rows under cosine, in either phase."""
    with opened(tmp_path, templates, phase) as made:
        yield made


def opened(tmp_path: Path, templates: dict[str, Path], phase: str, metric: str = "cosine") -> LiveStore:
    path = tmp_path / f"store-{phase}-{metric}"
    if phase == "indexed":
        shutil.copytree(templates[metric], path)
        return LiveStore(path)
    made = LiveStore(path, options(metric))
    made.put(documents(range(N)), ROWS)
    return made


def check_scores(found: Any, metric: str, queries: Any, rows: dict[str, Any]) -> None:
    """Scores are those of the rows under the ids, best first."""
    for query, matches in zip(queries, found, strict=True):
        wanted = exact_scores(metric, query[None], np.array([rows[match.id] for match in matches]))[0]
        np.testing.assert_allclose([match.score for match in matches], wanted, rtol=1e-5, atol=1e-5)
        assert (np.diff([match.score for match in matches]) <= 0).all()


def everywhere(store: LiveStore) -> dict[str, int]:
    """Options by which an index of few rows, which was not calibrated, finds nearly all."""
    return {} if store.index is None else {"nprobe": open_index(store.index).manifest.nlist, "refine": 200}


def recall(found: Any, wanted: Any) -> float:
    shares = [len({m.id for m in a} & {m.id for m in b}) / len(b) for a, b in zip(found, wanted, strict=True)]
    return float(np.mean(shares))


@pytest.mark.parametrize("metric", METRICS)
def test_results_are_the_same_before_and_after_there_is_an_index(
    tmp_path: Path, templates: dict[str, Path], metric: str
) -> None:
    """The same changes to both; then the same ids within the recall, and equal scores for all that both find."""
    fresh, named = rows_of(60, 2), dict(zip([f"d{i}" for i in range(N)], ROWS, strict=True))
    found = {}
    for phase in ("exact", "indexed"):
        with opened(tmp_path, templates, phase, metric) as store:
            assert (store.index is None) == (phase == "exact")
            store.put(documents(range(N - 20, N + 40)), fresh)
            assert store.delete([f"d{i}" for i in range(30)] + ["nobody"]) == 30
            assert len(store) == N + 10 == store.documents.count()
            where = {"third": True, "i": {"$lt": 350}}
            found[phase] = [
                store.search(QUERIES, 10, **everywhere(store)),
                store.search(QUERIES, 10, where=where, **everywhere(store)),
                store.search(QUERIES, 5, ids=["d3", "d60", "d61", "d62"]),
                store.search(QUERIES, 5, where=where, ids=["d60", "d61", "d63"]),
                store.search(QUERIES, 500, nprobe=3),
            ]
            assert verify(store.index) == [] if store.index else True
    named |= dict(zip([f"d{i}" for i in range(N - 20, N + 40)], fresh, strict=True))
    for exact, indexed in zip(found["exact"][:4], found["indexed"][:4], strict=True):
        assert recall(indexed, exact) >= 0.95
        check_scores(exact, metric, QUERIES, named)
        check_scores(indexed, metric, QUERIES, named)
    gone = {f"d{i}" for i in range(30)}
    for found_of_phase in found.values():
        assert not gone & {match.id for matches in found_of_phase[0] for match in matches}
        assert all(int(match.id[1:]) % 3 == 0 for matches in found_of_phase[1] for match in matches)
        assert {match.id for matches in found_of_phase[2] for match in matches} == {"d60", "d61", "d62"}
        assert {match.id for matches in found_of_phase[3] for match in matches} == {"d60", "d63"}
        # However few lists are visited, what is there is found.
        assert [len(matches) for matches in found_of_phase[4]] == [N + 10] * len(QUERIES)


def test_exact_search_is_exact(tmp_path: Path, templates: dict[str, Path]) -> None:
    for metric in METRICS:
        with opened(tmp_path, templates, "exact", metric) as store:
            best = np.argsort(-exact_scores(metric, QUERIES, ROWS), axis=1, kind="stable")[:, :10]
            assert [[match.id for match in matches] for matches in store.search(QUERIES)] == [
                [f"d{i}" for i in row] for row in best
            ]


def test_the_row_that_makes_them_enough_compiles_the_index(tmp_path: Path) -> None:
    with LiveStore(tmp_path / "store", options(compile_at=300)) as store:
        store.put(documents(range(299)), ROWS[:299])
        assert store.index is None and store.documents.waiting == 299
        before = store.search(QUERIES)
        store.put(documents([299]), ROWS[299:300])
        assert store.index == tmp_path / "store" / "index-1" and store.documents.waiting == 0
        assert recall(store.search(QUERIES, **everywhere(store)), before) >= 0.95
        assert store.search(ROWS[299], 1)[0][0].id == "d299"
        names = sorted(os.listdir(tmp_path / "store"))
        assert [name for name in names if not name.startswith("documents")] == ["index-1", "lock"]


def test_a_new_index_takes_the_place_of_the_old_one(tmp_path: Path, templates: dict[str, Path]) -> None:
    with opened(tmp_path, templates, "indexed") as store, LiveStore(store.path) as reader:
        store.put(documents(range(N, N + 100)), rows_of(100, 3))
        store.delete(["d5"])
        before = reader.search(QUERIES, **everywhere(reader))
        report = store.compile(QUERIES, ram="16B/vec")
        assert report["plan"] and store.options.ram == "16B/vec"
        assert store.index == store.path / "index-2" and not (store.path / "index-1").exists()
        for one in (store, reader):
            assert recall(one.search(QUERIES, **everywhere(one)), before) >= 0.95
            assert one.vectors(["d5"]) == [None] and one.search(ROWS[5], 1)[0][0].id != "d5"


def test_vectors_come_back_as_they_are_compared(store: LiveStore) -> None:
    first, none, last = store.vectors(["d0", "nobody", "d399"])
    assert none is None
    np.testing.assert_allclose(first, ROWS[0] / np.linalg.norm(ROWS[0]), atol=1e-6)
    np.testing.assert_allclose(last, ROWS[399] / np.linalg.norm(ROWS[399]), atol=1e-6)
    with pytest.raises(InvalidInput, match="^1 of 2 results have no vector any more; search again$"):
        store.require_vectors(["d0", "nobody"])


def test_documents_without_vectors_are_found_by_metadata_only(store: LiveStore) -> None:
    assert store.put([Document("bare", "b", {"i": -1}), Document("d0", "c", {"i": -1})], [None, None]) == ["bare", "d0"]
    assert store.documents.ids({"i": -1}).tolist() == ["d0", "bare"]
    assert store.search(ROWS[0], 5, where={"i": -1}) == [[]]
    assert store.search(ROWS[0], 1)[0][0].id != "d0" and store.vectors(["d0", "bare"]) == [None, None]
    store.put([Document("bare", "b", {"i": -1}), Document("more", "b")], [ROWS[0], None])
    assert store.search(ROWS[0], 5, where={"i": -1})[0][0].id == "bare"


def test_of_two_documents_with_one_id_the_last_counts(store: LiveStore) -> None:
    twice = [Document("a", "one"), Document("a", "two")]
    assert store.put(twice, QUERIES[:2]) == ["a"]
    assert store.documents.get(["a"]) == [twice[1]]
    assert store.search(QUERIES[1], 1)[0][0].score == pytest.approx(1)
    np.testing.assert_allclose(store.vectors(["a"])[0], QUERIES[1] / np.linalg.norm(QUERIES[1]), atol=1e-6)


def test_metadata_changes_without_vectors(store: LiveStore) -> None:
    store.describe([Document("d7", "new", {"i": 1000})])
    assert store.search(ROWS[7], 3, where={"i": 1000})[0][0].id == "d7"
    assert store.documents_of(store.search(ROWS[7], 1)[0])[0][1].text == "new"


def test_one_and_true_are_different_filters(store: LiveStore) -> None:
    store.describe([Document("d7", "", {"x": 1}), Document("d8", "", {"x": True})])
    assert [match.id for match in store.search(ROWS[7], 3, where={"x": 1})[0]] == ["d7"]
    assert [match.id for match in store.search(ROWS[7], 3, where={"x": True})[0]] == ["d8"]


def test_everything_can_be_deleted_and_added_again(store: LiveStore) -> None:
    store.delete(store.documents.ids().tolist())
    assert len(store) == 0 and store.search(QUERIES[:2], 3) == [[], []]
    store.put(documents(range(3)), ROWS[:3])
    assert {match.id for match in store.search(QUERIES[0], 9)[0]} == {"d0", "d1", "d2"}


def test_an_empty_store_finds_nothing(tmp_path: Path) -> None:
    with LiveStore(tmp_path / "store") as store:
        assert store.search(QUERIES[:2]) == [[], []] and store.vectors(["a"]) == [None] and store.d is None


class Stopped(Exception):
    """Stands for whatever ends a process."""


def stop(*_: Any, **__: Any) -> Any:
    raise Stopped


@pytest.mark.parametrize("step", ["before the index", "within the index", "after the index"])
def test_what_a_stopped_change_has_left_is_taken_later(
    tmp_path: Path, templates: dict[str, Path], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Documents are written; the index is not, or is, and SQLite does not know. Opening makes them agree."""
    store = opened(tmp_path, templates, "indexed")
    patches = {
        "before the index": (store_module, "take_waiting"),
        "within the index": (IndexUpdater, "publish"),
        "after the index": (type(store.documents), "settle"),
    }
    with monkeypatch.context() as patch:
        patch.setattr(*patches[step], stop)
        with pytest.raises(Stopped):
            store.put(documents([1, N]), QUERIES[:2])
        with pytest.raises(Stopped):
            store.delete(["d2", "d3"])
    # Another reader does not see rows that are gone, nor rows without their documents.
    assert store.documents.waiting == 4
    found = store.search(ROWS[2], N)[0]
    assert not {"d2", "d3"} & {match.id for match in found}
    assert store.vectors(["d2"]) == [None]
    store.close()
    with LiveStore(store.path) as again:
        assert again.documents.waiting == 0 and len(again) == N - 1
        for key, query in (("d1", QUERIES[0]), (f"d{N}", QUERIES[1])):
            assert again.search(query, 1)[0][0] == (key, pytest.approx(1))
        found = again.search(ROWS[2], N)[0]
        assert not {"d2", "d3"} & {match.id for match in found} and len({match.id for match in found}) == len(found)
        assert again.index is not None and verify(again.index) == []


KILLED = """
import os, sys
import numpy as np
from vqdistill.documents.document import Document
import {place} as place
from vqdistill.integrations.store import LiveStore
place.{name} = lambda *_, **__: os.kill(os.getpid(), 9)
with LiveStore(sys.argv[1]) as store:
    rows = np.load(sys.argv[2])
    {call}
"""


@pytest.mark.parametrize(
    ("place", "name", "call"),
    [
        ("vqdistill.integrations.store", "take_waiting", "store.put([Document('new', 'n')], rows)"),
        ("vqdistill.compiler.build", "compile", "store.compile()"),
    ],
)
def test_a_killed_process_leaves_a_store_that_goes_on(
    tmp_path: Path, templates: dict[str, Path], place: str, name: str, call: str
) -> None:
    opened(tmp_path, templates, "indexed").close()
    path = tmp_path / "store-indexed-cosine"
    np.save(tmp_path / "rows.npy", QUERIES[:1])
    code = KILLED.format(place=place, name=name, call=call)
    done = subprocess.run([sys.executable, "-c", code, str(path), str(tmp_path / "rows.npy")])
    assert done.returncode == -9
    with LiveStore(path) as store:
        assert store.index == path / "index-1" and store.documents.waiting == 0
        best = store.search(QUERIES[0], 1)[0][0]
        assert (best.id == "new") == (name == "take_waiting")
        store.compile()
        assert sorted(name for name in os.listdir(path) if name.startswith("index")) == ["index-2"]
        assert store.search(QUERIES[0], 1)[0][0].id == best.id


def test_a_compile_that_fails_loses_nothing(tmp_path: Path) -> None:
    with LiveStore(tmp_path / "store", options(compile_at=300, ram="1KiB")) as store:
        with pytest.raises(VqdistillError, match="^the documents of .* are stored and found, but their index"):
            store.put(documents(range(N)), ROWS)
        assert store.index is None and store.search(ROWS[5], 1)[0][0].id == "d5"
    with LiveStore(tmp_path / "store") as again:
        again.compile(ram="16B/vec")
        assert again.index is not None and again.search(ROWS[5], 1)[0][0].id == "d5"


def test_an_index_that_another_writes_takes_its_rows_later(
    tmp_path: Path, templates: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    with opened(tmp_path, templates, "indexed") as store:
        assert store.index is not None
        lock = lock_writer(store.index)
        with pytest.raises(VqdistillError, match="^the documents of .* are stored, but the index has not taken 1"):
            store.put([Document("late", "")], QUERIES[:1])
        with caplog.at_level(logging.WARNING), LiveStore(store.path) as other:
            assert other.documents.get(["late"]) == [Document("late", "")]
        assert "which it will at the next change or opening" in caplog.text
        os.close(lock)
        store.put([Document("next", "")], QUERIES[1:2])
        assert [store.search(query, 1)[0][0].id for query in QUERIES[:2]] == ["late", "next"]


def test_one_changes_a_folder_at_a_time_and_others_read(store: LiveStore) -> None:
    with exclusive(store.path / "lock", 1):
        with LiveStore(store.path, wait_s=0) as reader:
            assert reader.search(ROWS[5], 1)[0][0].id == "d5"
            with pytest.raises(VqdistillError, match="is being changed by another writer, and still was after 0 s$"):
                reader.delete(["d5"])
        assert store.search(ROWS[5], 1)[0][0].id == "d5"


def test_readers_see_changes_of_others_at_once(store: LiveStore) -> None:
    with LiveStore(store.path) as other:
        assert other.search(QUERIES[0], 1)[0][0].id != "new"
        store.put([Document("new", "")], QUERIES[:1])
        assert other.search(QUERIES[0], 1)[0][0].id == "new"
        other.delete(["new"])
        assert store.search(QUERIES[0], 1)[0][0].id != "new"


def test_threads_search_while_others_change(store: LiveStore) -> None:
    failures: list[BaseException] = []
    done = threading.Event()

    def read() -> None:
        try:
            while not done.is_set():
                for match, document in store.documents_of(store.search(ROWS[9], 5, where={"i": {"$gte": 0}})[0]):
                    assert match.id == document.id
        except BaseException as error:
            failures.append(error)

    def write(worker: int) -> None:
        try:
            for i in range(4):
                store.put([Document(f"w{worker}-{i}", "", {"i": i})], QUERIES[i : i + 1])
                store.delete([f"w{worker}-{i - 1}"])
        except BaseException as error:
            failures.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    writers = [threading.Thread(target=write, args=(worker,)) for worker in range(2)]
    for thread in readers + writers:
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    for thread in readers:
        thread.join()
    assert not failures
    assert len(store) == N + 2 and store.documents.waiting == (N + 2 if store.index is None else 0)
    assert {match.id for match in store.search(QUERIES[3], 2)[0]} == {"w0-3", "w1-3"}


def test_an_index_with_row_numbers_can_be_served_but_not_replaced(tmp_path: Path) -> None:
    vqdistill.compile(ROWS, tmp_path / "index", queries="none", distill=False, dense="f32")
    with LiveStore(tmp_path / "store", index=tmp_path / "index") as store:
        assert store.documents.kind == "int64" and store.options.metric == "cosine"
        store.describe(Document(i, f"text {i}", {"i": i}) for i in range(N - 1))
        ((best,),) = store.search(ROWS[7], 1, where={"i": {"$gte": 5}})
        assert (best.id, store.documents_of([best])[0][1].text) == (7, "text 7")
        assert store.documents_of(store.search(ROWS[N - 1], 1)[0])[0][1] == Document(N - 1, "")
        with pytest.raises(InvalidInput, match=r"^rows of .*index are numbered and cannot be replaced"):
            store.put([Document(3, "")], ROWS[:1])
        assert store.delete([7]) == 1 and store.search(ROWS[7], 1)[0][0].id != 7
    with LiveStore(tmp_path / "store") as again:
        assert again.index == (tmp_path / "index").resolve() and again.search(ROWS[8], 1)[0][0].id == 8
    with pytest.raises(InvalidInput, match="^options must have metric 'cosine' and kind 'int64', as .*index has, got"):
        LiveStore(tmp_path / "other", StoreOptions(), index=tmp_path / "index")
    with LiveStore(tmp_path / "full", options(kind="int64")) as full:
        full.put([Document(3, "")], ROWS[:1])
    with pytest.raises(InvalidInput, match=r"full must be empty to begin with an index, got one that has rows$"):
        LiveStore(tmp_path / "full", options(kind="int64"), index=tmp_path / "index")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.search(QUERIES, 0), "k must be an integer of at least 1, got 0"),
        (lambda s: s.search(QUERIES[:, :5]), f"queries must be of shape (rows, {D}), got (20, 5) float32"),
        (lambda s: s.search(QUERIES, nprobe=0), "nprobe must be a positive integer, got 0"),
        (lambda s: s.put(documents([1]), ROWS[:2]), "vectors must be one for each of 1 documents, got 2"),
        (lambda s: s.put(documents([1]), ROWS[:1, :3]), f"vectors must be of shape (rows, {D}), got (1, 3) float32"),
        (
            lambda s: s.put(documents([1, 2]), [ROWS[0], ROWS[0, :3]]),
            f"vectors must be of shape (rows, {D}), got several lengths",
        ),
        (
            lambda s: s.put(documents([1]), [[0.0] * D]),
            "vectors row 0 is a zero vector, which has no direction under metric cosine",
        ),
        (
            lambda s: s.put(documents([1]), [[np.nan] * D]),
            "vectors row 0 holds NaN or infinity (1 such rows in this block)",
        ),
        (lambda s: s.put([Document(1, "")], ROWS[:1]), "id of a document must be a string that is not empty, got 1"),
        (lambda s: s.compile(speed=1), "compile changes ram, recall, dense, distill or seed, got speed"),
        (lambda s: s.search(QUERIES, speed=1), None),
    ],
)
def test_what_cannot_be_used_is_said_and_changes_nothing(store: LiveStore, call: Any, message: str | None) -> None:
    before = store.documents.revision
    with pytest.raises(InvalidInput) as caught:
        call(store)
    if message is not None:
        assert str(caught.value) == message
    assert store.documents.revision == before and store.documents.count() == N


def test_options_are_checked_and_kept(tmp_path: Path) -> None:
    for wrong, message in (
        ({"metric": "dot"}, "metric must be one of ip, cosine, l2, got 'dot'"),
        ({"kind": "int"}, "kind of ids must be one of str, int64, got 'int'"),
        ({"compile_at": 10}, "compile_at must be an integer of at least 256, or None, got 10"),
        ({"dense": "none"}, "dense must be one of f32, f16, bf16, i8, got 'none'"),
        ({"distill": 1}, "distill must be True or False, got 1"),
        ({"seed": -1}, "seed must be a non-negative integer, got -1"),
        ({"ram": "much"}, 'ram must be a size such as "32B/vec" or "64MiB", got \'much\''),
    ):
        with pytest.raises(InvalidInput) as caught:
            StoreOptions(**wrong)  # type: ignore[arg-type]
        assert str(caught.value) == message
    with pytest.raises(InvalidInput, match="^options of a store must be among compile_at, .*, got {'speed': 1}$"):
        StoreOptions.from_json({"speed": 1})
    LiveStore(tmp_path / "store", StoreOptions(metric="l2", seed=3)).close()
    with LiveStore(tmp_path / "store") as store:
        assert store.options == StoreOptions(metric="l2", seed=3) == StoreOptions.from_json(store.options.to_json())
    with pytest.raises(InvalidInput, match=r"must be as it has them, metric='l2', seed=3; leave them out to open it$"):
        LiveStore(tmp_path / "store", StoreOptions())
    with pytest.raises(InvalidInput, match=r"^folder .*nowhere/store of a store cannot be made: No such file"):
        LiveStore(tmp_path / "nowhere" / "store")
    few = LiveStore(tmp_path / "few", options())
    with few, pytest.raises(InvalidInput, match=r"^an index needs 256 vectors at least, got 0 in .*few$"):
        few.compile()
