"""Rows that are added, replaced and deleted, against a plain dictionary of what must be there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vqdistill as vqd
from tests.index.support import make_sample, open_fds, snapshot, write_sample
from vqdistill.errors import InvalidInput, VqdistillError
from vqdistill.index import batch, idtable, merge, update
from vqdistill.index.gc import gc
from vqdistill.index.join import merge_indexes
from vqdistill.index.reader import IndexReader
from vqdistill.index.update import IndexUpdater
from vqdistill.index.verify import verify
from vqdistill.kernels import unpack_codes
from vqdistill.model.learned import LearnQueries
from vqdistill.searcher import Searcher

N, D, NLIST = 70, 5, 4
KINDS = ["rows", "int64", "str"]


def new_ids(kind: str, begin: int, count: int) -> Any:
    if kind == "rows":
        return None
    if kind == "int64":
        return np.arange(begin, begin + count) + 10**12
    return [f"neu {row}" for row in range(begin, begin + count)]


def rows_of(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, D)).astype(np.float32)


@pytest.fixture
def few_merges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets of any size stay apart, and all is done in tiny pieces."""
    monkeypatch.setattr(update, "SMALL_ROWS", 0)
    monkeypatch.setattr(merge, "CHUNK_BYTES", 64)


def make(path: Path, kind: str, **options: Any) -> dict[Any, np.ndarray]:
    """Write a small index, and return its rows by their ids."""
    sample = make_sample(n=N, d=D, nlist=NLIST, ids=kind, dense="f32", **options)
    write_sample(path, sample)
    return dict(zip(range(N) if kind == "rows" else list(sample.ids), sample.x, strict=True))


def check(path: Path, wanted: dict[Any, np.ndarray], searcher: Searcher | None = None) -> None:
    """The index at `path` has these rows and no others, by every way there is to look."""
    assert verify(path) == []
    searcher = vqd.open(path) if searcher is None else searcher
    reader = searcher.reader
    manifest = reader.manifest
    assert manifest.live == len(wanted) and manifest.n == sum(rows.n for rows in manifest.sets)
    keys = list(wanted)
    positions = reader.positions_of(keys)
    assert (positions >= 0).all() and len(set(positions.tolist())) == len(keys)
    assert [int(reader.positions_of([key])[0]) for key in keys[:9]] == positions[:9].tolist(), "one by one"
    assert [str(key) for key in reader.ids_of(positions).tolist()] == [str(key) for key in keys]
    assert np.array_equal(reader.dense_rows(positions), np.array(list(wanted.values())))
    numbers = reader.rows_of(positions)
    assert len(set(numbers.tolist())) == len(keys) and numbers.max() < manifest.next_row
    queries = rows_of(99, 3)
    options = {"k": manifest.n, "nprobe": NLIST, "refine": manifest.n}
    scores, ids = searcher.search(queries, **options)
    exact = np.array(list(wanted.values())) @ queries.T
    for i in range(len(queries)):
        found = dict(zip(ids[i, : len(keys)].tolist(), scores[i].tolist(), strict=False))
        assert set(found) == {str(key) if manifest.ids == "str" else int(key) for key in keys}
        assert np.isneginf(scores[i, len(keys) :]).all()
        assert np.allclose([found[str(k) if manifest.ids == "str" else int(k)] for k in keys], exact[:, i], atol=1e-5)


@pytest.mark.parametrize("additive", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_life(tmp_path: Path, kind: str, additive: bool, few_merges: None) -> None:
    path = tmp_path / "x.vqd"
    wanted, fds = make(path, kind, additive=additive), open_fds()
    searcher = vqd.open(path)
    sets = []
    for round_ in range(6):
        x, count = rows_of(round_, 5 + round_), 5 + round_
        ids = new_ids(kind, 100 * round_, count)
        number = searcher.reader.manifest.next_row
        assert searcher.add(x, ids) == count
        wanted |= dict(zip(range(number, number + count) if ids is None else list(ids), x, strict=True))
        gone = list(wanted)[round_::11]
        assert searcher.delete(gone) == len(gone) and searcher.delete(gone) == 0
        wanted = {key: row for key, row in wanted.items() if key not in gone}
        check(path, wanted, searcher)
        sets.append(len(searcher.reader.manifest.sets))
    assert max(sets) >= 2 and searcher.reader.manifest.deleted
    if kind != "rows":
        keys, x = list(wanted)[3:9], rows_of(50, 6)
        searcher.upsert(x, keys)
        wanted |= dict(zip(keys, x, strict=True))
        check(path, wanted)
    before = dict(zip(*numbers_of(searcher, list(wanted)), strict=True))
    searcher.compact()
    check(path, wanted, searcher)
    manifest = searcher.reader.manifest
    assert (manifest.n, manifest.deleted, len(manifest.sets)) == (len(wanted), 0, 1)
    assert dict(zip(*numbers_of(searcher, list(wanted)), strict=True)) == before, "row numbers stay"
    assert gc(path)["files"] > 0 and gc(path)["files"] == 0
    check(path, wanted)
    del searcher
    assert open_fds() == fds


def test_added_rows_are_coded_for_the_learn_queries(tmp_path: Path, few_merges: None) -> None:
    """As the model codes them, anchors and queries included; what is merged keeps both."""
    sample, rng = make_sample(n=N, d=D, nlist=NLIST, ids="rows", dense="f32", additive=True), np.random.default_rng(3)
    queries, scores = rng.standard_normal((9, D)).astype(np.float32), np.full((9, 1), -1, np.float32)
    anchors = rng.standard_normal((NLIST, D)).astype(np.float32)
    model = replace(sample.model, learned=LearnQueries(queries, scores, True), anchors=anchors)
    for name in ("a.vqd", "b.vqd"):
        write_sample(tmp_path / name, replace(sample, model=model))
    more = rows_of(8, 40)
    with IndexUpdater(tmp_path / "a.vqd") as updater:
        updater.add(None, more)
        updater.publish()
    with IndexReader.open(tmp_path / "a.vqd") as reader:
        stored, wanted = reader.sets[1], reader.model.encode_new(more)
        order = np.argsort(wanted.lists, kind="stable")
        assert np.array_equal(np.diff(stored.list_offsets), np.bincount(wanted.lists, minlength=NLIST))
        assert np.array_equal(unpack_codes(stored.arrays["codes"], len(more)), wanted.codes[order])
        plain = replace(reader.model, learned=None, anchors=None).encode(more)
        assert (plain.lists != wanted.lists).any() and (plain.codes != wanted.codes).any()
    merge_indexes([tmp_path / "a.vqd", tmp_path / "b.vqd"], tmp_path / "c.vqd")
    with IndexReader.open(tmp_path / "c.vqd") as reader:
        assert reader.manifest.learned is not None and np.array_equal(reader.model.anchors, anchors)


def numbers_of(searcher: Searcher, keys: list[Any]) -> tuple[list[Any], list[int]]:
    reader = searcher.reader
    return keys, reader.rows_of(reader.positions_of(keys)).tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_compaction_gives_what_one_write_gives(tmp_path: Path, kind: str, few_merges: None) -> None:
    """Compacted, an index that grew has the same segments as one that was written at once."""
    whole = make_sample(n=N + 40, d=D, nlist=NLIST, ids=kind, dense="i8")
    part = make_sample(n=N, d=D, nlist=NLIST, ids=kind, dense="i8")
    grown, once = tmp_path / "grown.vqd", tmp_path / "once.vqd"
    write_sample(grown, part)
    searcher = vqd.open(grown)
    x = rows_of(1, 40)
    ids = None if kind == "rows" else whole.ids[N:]
    for begin in range(0, 40, 8):
        searcher.add(x[begin : begin + 8], None if ids is None else ids[begin : begin + 8])
    codes = part.model.encode(x)
    with vqd.open_index(grown) as reader:
        assert len(reader.sets) > 1
    searcher.compact()
    with vqd.index.writer.IndexWriter(
        once, part.model, dense="i8", ids=kind, index_id=searcher.reader.manifest.index_id
    ) as writer:
        writer.add(part.ids, part.codes, part.x)
        writer.add(ids, codes, x)
        writer.publish({}, part.search, {})
    with vqd.open_index(grown) as a, vqd.open_index(once) as b:
        assert {kind: s.crc32 for kind, s in a.manifest.segments.items()} == {
            kind: s.crc32 for kind, s in b.manifest.segments.items()
        }
        assert a.resident_bytes == b.resident_bytes


def test_rows_of_a_large_addition_come_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.vqd"
    wanted = make(path, "str")
    monkeypatch.setattr(update, "BATCH_BYTES", 600)
    monkeypatch.setattr(update, "SMALL_ROWS", 0)
    x, ids = rows_of(5, 60), new_ids("str", 0, 60)
    with IndexUpdater(path) as updater:
        for begin in range(0, 60, 6):
            updater.add(ids[begin : begin + 6], x[begin : begin + 6])
        assert verify(path) == [] and len(updater._parts) < 8
        updater.publish()
    check(path, wanted | dict(zip(ids, x, strict=True)))
    with IndexUpdater(path) as updater, pytest.raises(InvalidInput, match=r"ids must be unique, got 'b' twice"):
        for begin in range(0, 60, 6):
            updater.add([f"{begin + i}x" for i in range(5)] + ["b"], x[begin : begin + 6])
    gc(path)
    check(path, wanted | dict(zip(ids, x, strict=True)))


@pytest.mark.parametrize(
    ("additions", "sizes"),
    [
        ([N], [N, N]),
        ([2 * N], [3 * N]),
        ([20, 10, 10], [N, 40]),
        ([20, 19, 5], [N, 20, 19, 5]),
    ],
)
def test_what_an_addition_is_merged_with(
    tmp_path: Path, additions: list[int], sizes: list[int], few_merges: None
) -> None:
    """Sets that are no larger; of the first only what twice as many rows pay for."""
    path = tmp_path / "x.vqd"
    make(path, "rows")
    searcher = vqd.open(path)
    for count in additions:
        searcher.add(rows_of(count, count))
    assert [rows.n for rows in searcher.reader.manifest.sets] == sizes


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "x.vqd"
    make(path, "int64")
    with IndexUpdater(path):
        with pytest.raises(VqdistillError, match=r"x\.vqd is being written by another writer"):
            IndexUpdater(path)
        with pytest.raises(VqdistillError, match="another writer"):
            gc(path)
    with IndexUpdater(path) as updater:
        updater.delete([-2])
        assert updater.publish().deleted == 1
    assert gc(path)["files"] == 1


def test_readers_keep_their_generation(tmp_path: Path) -> None:
    path = tmp_path / "x.vqd"
    wanted = make(path, "int64")
    old, new = vqd.open(path), vqd.open(path)
    codes = old.reader._stored.arrays["codes"]
    new.delete(list(wanted)[:9])
    new.compact()
    assert gc(path)["kept_generations"] == 1, "that of `old`; the middle one is open nowhere"
    assert old.reader.manifest.generation == 1 and old.reader.manifest.live == N
    assert IndexReader.open(path).manifest.live == N - 9
    assert old.search(rows_of(1, 2), k=N, nprobe=NLIST, refine=N).ids.min() < -1
    allow = old.prepare(list(wanted)[:20])
    assert old.refresh() and not old.refresh()
    with pytest.raises(InvalidInput, match=r"generation \d of the index, which it filters, got 1; prepare it again"):
        old.search(rows_of(1, 1), k=1, allow=allow)
    assert old.reader._stored.arrays["router"] is not None and old.reader._stored.arrays["codes"] is not codes
    assert gc(path)["kept_generations"] == 0
    check(path, dict(list(wanted.items())[9:]), old)


def test_refresh_shares_what_stays(tmp_path: Path, few_merges: None) -> None:
    path = tmp_path / "x.vqd"
    make(path, "int64")
    searcher = vqd.open(path)
    before = searcher.reader._stored.arrays
    searcher.add(rows_of(1, 9), new_ids("int64", 0, 9))
    after = searcher.reader._stored.arrays
    assert all(after[kind] is before[kind] for kind in ("codes", "router", "codewords", "list_offsets"))


@pytest.mark.parametrize("mask", [False, True])
def test_filters_and_deletions_together(tmp_path: Path, mask: bool, few_merges: None) -> None:
    path = tmp_path / "x.vqd"
    make(path, "rows")
    searcher = vqd.open(path)
    searcher.add(rows_of(1, 30))
    searcher.delete(np.arange(0, 100, 4))
    allowed = np.arange(0, 100, 6)
    allow: Any = np.isin(np.arange(100), allowed) if mask else allowed
    hits = searcher.search(rows_of(2, 4), k=100, nprobe=NLIST, refine=100, allow=allow)
    living = {row for row in allowed.tolist() if row % 4}
    assert all(set(ids[ids >= 0].tolist()) == living for ids in hits.ids)


def _bad(path: Path) -> Iterator[tuple[str, Any]]:
    known = [-2, -9]
    yield "ids must be int64, got NoneType", lambda s: s.add(rows_of(0, 2))
    yield "got -9, which it has; upsert replaces", lambda s: s.add(rows_of(0, 2), [5, -9])
    yield "got 5 twice", lambda s: s.add(rows_of(0, 2), [5, 5])
    yield "got 5 twice", lambda s: s.upsert(rows_of(0, 2), [5, 5])
    yield r"ids must be one for each of 2 rows, got 1", lambda s: s.add(rows_of(0, 2), [5])
    yield "on_duplicate must be one of refuse, replace", lambda s: s.add(rows_of(0, 2), known, on_duplicate="keep")
    yield "vectors must be of shape", lambda s: s.add(np.ones((2, 3)), [5, 6])
    yield "holds NaN", lambda s: s.add(np.full((2, D), np.nan), [5, 6])
    yield "ids must be integers", lambda s: s.delete(["a"])


@pytest.mark.parametrize("at", range(9))
def test_bad_input_changes_nothing(tmp_path: Path, at: int) -> None:
    path = tmp_path / "x.vqd"
    make(path, "int64")
    before, (message, use) = snapshot(path), list(_bad(path))[at]
    searcher, fds = vqd.open(path), open_fds()
    with pytest.raises(InvalidInput, match=message):
        use(searcher)
    assert snapshot(path) == before and open_fds() == fds


def test_every_row_may_be_deleted_but_not_compacted(tmp_path: Path) -> None:
    path = tmp_path / "x.vqd"
    wanted = make(path, "str")
    searcher = vqd.open(path)
    assert searcher.delete(list(wanted)) == N
    assert (searcher.search(rows_of(0, 2), k=3, nprobe=NLIST, refine=10).ids == "").all()
    with pytest.raises(InvalidInput, match="at least one row"):
        searcher.compact()
    searcher.add(rows_of(1, 2), ["a", "b"])
    check(path, dict(zip("ab", rows_of(1, 2), strict=True)))


@pytest.mark.parametrize("kind", KINDS)
def test_merging_indexes(tmp_path: Path, kind: str, few_merges: None) -> None:
    first, second, out = tmp_path / "a.vqd", tmp_path / "b.vqd", tmp_path / "c.vqd"
    wanted = make(first, kind)
    make(second, kind)
    other = vqd.open(second)
    other.delete(list(wanted))
    x, ids = rows_of(3, 20), new_ids(kind, 0, 20)
    other.add(x, ids)
    shift = N if kind == "rows" else 0
    wanted |= dict(zip(range(N + shift, N + shift + 20) if ids is None else list(ids), x, strict=True))
    merge_indexes([first, second], out)
    check(out, wanted)
    if kind != "rows":
        with pytest.raises(InvalidInput, match="in two of the indexes"):
            merge_indexes([first, first], tmp_path / "d.vqd")
    assert sorted(os.listdir(tmp_path)) == ["a.vqd", "b.vqd", "c.vqd"]


def test_merging_different_models(tmp_path: Path) -> None:
    make(tmp_path / "a.vqd", "str")
    make(tmp_path / "b.vqd", "str", seed=1)
    ids = [IndexReader.open(tmp_path / name).manifest.model_id.hex() for name in ("a.vqd", "b.vqd")]
    with pytest.raises(InvalidInput, match=rf"must have the same model, got {ids[0]} in .*a\.vqd and {ids[1]} in"):
        merge_indexes([tmp_path / "a.vqd", tmp_path / "b.vqd"], tmp_path / "c.vqd")
    with pytest.raises(InvalidInput, match="two or more, got 1"):
        merge_indexes([tmp_path / "a.vqd"], tmp_path / "c.vqd")


def test_equal_digests_of_different_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (idtable, vqd.index.lookup):
        monkeypatch.setattr(module, "text_key", lambda text: bytes([len(text) % 3]) * 8)
    path = tmp_path / "x.vqd"
    wanted = make(path, "str")
    searcher = vqd.open(path)
    gone = list(wanted)[::5]
    assert searcher.delete([*gone, "dok-999", "9999"]) == len(gone)
    check(path, {key: row for key, row in wanted.items() if key not in gone})


@pytest.mark.parametrize("keys", [[5, 3, -(2**63), 2**63 - 1, 0, 7, 7], list(range(100)), [4] * 9])
def test_id_tables_in_parts(tmp_path: Path, keys: list[int]) -> None:
    """Sorted a few rows at a time, a table is the same as sorted at once."""
    array = np.array(keys, np.int64)
    cut = lambda: iter(np.array_split(array, 3))  # noqa: E731
    parts = idtable._parts(cut, idtable._bounds(cut, 4))
    key, order = (np.concatenate(column) for column in zip(*parts(), strict=True))
    assert key.tolist() == sorted(keys) and array[order].tolist() == key.tolist()
    assert sorted(order.tolist()) == list(range(len(keys)))


def test_older_indexes_are_refused(tmp_path: Path) -> None:
    golden = Path(__file__).parent.parent / "golden" / "v3"
    searcher = vqd.open(golden / "index")
    with pytest.raises(InvalidInput, match="format version 4 or later"):
        searcher.delete([0])


def test_batches_refuse_what_cannot_be_stored() -> None:
    rows = batch.Batch(nlist=2, dense="f16", ids="str")
    with pytest.raises(InvalidInput, match="got 'a' twice"):
        rows.require_new(["a", "b", "a"])


def test_another_index_in_the_place_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.vqd"
    make(path, "int64")
    searcher = vqd.open(path)
    os.rename(path, tmp_path / "old.vqd")
    write_sample(path, make_sample(n=9, d=D, nlist=NLIST, ids="int64"), index_id=bytes(16))
    for use in (searcher.refresh, lambda: searcher.delete([-2])):
        with pytest.raises(InvalidInput, match="must be the one that was opened, but is another one now"):
            use()
    assert searcher.search(rows_of(0, 1), k=3, nprobe=NLIST).ids.shape == (1, 3)
