"""An index in shards is searched as the index of one piece of the same rows is; its manifest is not trusted."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vqdistill
from tests.searching import CALIBRATED, NLIST, PLAIN, N, embeddings, write_index
from tests.sharding import CUTS, write_sharded
from vqdistill.errors import CorruptIndex, FormatTooNew, InvalidInput, VqdistillError
from vqdistill.index.gc import gc
from vqdistill.index.opening import open_index
from vqdistill.index.regather import publish_shards
from vqdistill.index.shardset import read_shards
from vqdistill.index.verify import verify

KINDS: dict[str, dict[str, Any]] = {
    "plain": {"search": PLAIN, "dense": "f16"},
    "additive": {"search": CALIBRATED, "additive": True, "tables": "i8", "dense": "i8"},
    "l2": {"metric": "l2", "search": replace(PLAIN, nprobe=5)},
    "bare": {"search": type(PLAIN)(nprobe=3, refine=0), "dense": "none"},
    "words": {"metric": "cosine", "search": PLAIN, "ids": [f"doc-{row}" for row in range(N)]},
}
ALL = {"k": N, "refine": 0, "nprobe": NLIST}
ASKED: list[dict[str, Any]] = [{}, {"refine": 0}, {"nprobe": 2}, {"nprobe": NLIST}, ALL]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """By kind, the same rows in one piece and in shards."""
    place, found = tmp_path_factory.mktemp("pairs"), {}
    for name, options in KINDS.items():
        one, many = place / f"{name}.vqd", place / f"{name}-shards.vqd"
        write_index(one, **options)
        write_sharded(many, **options)
        found[name] = (one, many)
    return found


@pytest.fixture
def many(pairs: dict[str, tuple[Path, Path]], tmp_path: Path) -> Path:
    """A copy, to be changed."""
    return Path(shutil.copytree(pairs["plain"][1], tmp_path / "many.vqd"))


@pytest.mark.parametrize("io", ["auto", "map", "pread"])
@pytest.mark.parametrize("kind", KINDS)
def test_results_are_those_of_one_piece(pairs: dict[str, tuple[Path, Path]], kind: str, io: str) -> None:
    one, many = (vqdistill.open(path, io=io) for path in pairs[kind])
    queries = embeddings(0)[1]
    for asked in ASKED:
        wanted, found = (searcher.search(queries, **{"k": 10} | asked) for searcher in (one, many))
        for name in ("scores", "ids", "rows"):
            assert np.array_equal(getattr(wanted, name), getattr(found, name)), (asked, name)
        assert np.array_equal(wanted.work[:, :4], found.work[:, :4])
    for allow in (np.arange(N) % 3 == 0, wanted.ids[0, :200:2]):
        a, b = (searcher.search(queries, 5, allow=allow) for searcher in (one, many))
        assert np.array_equal(a.ids, b.ids) and np.array_equal(a.scores, b.scores)
    a, b = (searcher.range_search(queries, float(wanted.scores[0, 20])) for searcher in (one, many))
    assert len(a.ids) > 20 and np.array_equal(a.ids, b.ids) and np.array_equal(a.lims, b.lims)
    assert one.explain(queries[3], wanted.ids[3, :30]) == many.explain(queries[3], wanted.ids[3, :30])


@pytest.mark.parametrize("kind", ["plain", "words"])
def test_rows_and_ids_are_found(pairs: dict[str, tuple[Path, Path]], kind: str) -> None:
    one, many = (open_index(path) for path in pairs[kind])
    ids = one.ids_of(np.arange(N))
    for few in (ids, ids[:3]):
        assert np.array_equal(one.positions_of(few), many.positions_of(few))
    assert np.array_equal(many.ids_of(np.arange(N)), ids)
    assert np.array_equal(many.dense_rows(np.arange(N)), one.dense_rows(np.arange(N)))
    assert many.resident_bytes == one.resident_bytes and many.manifest.live == N
    assert (many.positions_of(["none"] if kind == "words" else [-5]) == -1).all()
    with pytest.raises(InvalidInput, match="positions must be in"):
        many.ids_of(np.array([N]))


def test_each_shard_is_an_index(pairs: dict[str, tuple[Path, Path]]) -> None:
    _, path = pairs["plain"]
    assert verify(path) == [] and verify(path / "shard-2") == []
    hits = vqdistill.open(path / "shard-2").search(embeddings(0)[1], 5)
    assert hits.rows.min() >= CUTS[2] and hits.rows.max() < CUTS[3]


@pytest.mark.parametrize(
    "act",
    [
        lambda path: vqdistill.open(path).delete([3]),
        lambda path: gc(path),
        lambda path: vqdistill.export_index(path, path.with_name("out"), to="faiss"),
    ],
)
def test_what_is_for_one_piece_says_so(many: Path, act: Callable[[Path], Any]) -> None:
    with pytest.raises(InvalidInput, match="must be of one piece for this, got one in shards"):
        act(many)


# Generations


def test_changes_of_shards_appear_together(many: Path) -> None:
    queries, searcher = embeddings(0)[1], vqdistill.open(many)
    before = searcher.search(queries, 10)
    gone = int(before.ids[0, 0])
    shard = next(number for number in range(4) if CUTS[number] <= gone < CUTS[number + 1])
    assert vqdistill.open(many / f"shard-{shard}").delete([gone]) == 1
    vqdistill.open(many / "shard-3").add(queries[:1])
    gc(many / f"shard-{shard}")
    for reader in (searcher, vqdistill.open(many)):
        assert not reader.refresh() and np.array_equal(reader.search(queries, 10).ids, before.ids)
    assert publish_shards(many).generation == 2 and publish_shards(many).generation == 2
    assert searcher.refresh() and verify(many) == []
    after = searcher.search(queries, 10, nprobe=NLIST)
    assert gone not in after.ids and N in after.ids and searcher.reader.manifest.live == N
    assert searcher.reader.positions_of([gone, N]).tolist()[0] == -1
    assert np.array_equal(searcher.search(queries, 10, threads=2).ids, vqdistill.open(many).search(queries, 10).ids)
    gc(many / f"shard-{shard}")
    assert verify(many) == []


def test_rows_go_to_the_last_shard(many: Path) -> None:
    vqdistill.open(many / "shard-1").add(embeddings(0)[1][:1])
    with pytest.raises(CorruptIndex, match=r"shard-1/manifest-2.json: next_row must be in 401..401, got 402; rows are"):
        publish_shards(many)
    assert read_shards(many).generation == 1


def test_an_id_is_in_one_shard_only(pairs: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    many = Path(shutil.copytree(pairs["words"][1], tmp_path / "words.vqd"))
    vqdistill.open(many / "shard-3").add(embeddings(0)[1][:2], ["new", "doc-17"])
    with pytest.raises(InvalidInput, match="ids must be unique, got 'doc-17' in shard-3 and shard-0; delete one"):
        publish_shards(many)
    vqdistill.open(many / "shard-0").delete(["doc-17"])
    publish_shards(many)
    found = vqdistill.open(many).search(embeddings(0)[1][:2], 1, nprobe=NLIST)
    assert found.ids[:, 0].tolist() == ["new", "doc-17"]


def test_publishing_needs_shards(pairs: dict[str, tuple[Path, Path]]) -> None:
    with pytest.raises(InvalidInput, match="index must be in shards"):
        publish_shards(pairs["plain"][0])


# Hostile files


def rewrite(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    doc = json.loads((path / "SHARDS").read_bytes().split(b"\n")[0])
    change(doc)
    text = json.dumps(doc).encode()
    (path / "SHARDS").write_bytes(text + f"\n{zlib.crc32(text):08x}\n".encode())


DAMAGE: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "format": (lambda doc: doc.update(format="x"), "format must be 'vqdistill-shards'"),
    "version": (lambda doc: doc.update(version=0), "version must be an integer in 1"),
    "key": (lambda doc: doc.update(more=1), "unknown keys"),
    "id": (lambda doc: doc.update(index_id="x"), "index_id must be 32 lower-case hex digits"),
    "other model": (lambda doc: doc.update(model_id="0" * 32), "model_id must be as in the set"),
    "none": (lambda doc: doc.update(shards=[]), r"shards must be a list of 1..4096 objects"),
    "path": (lambda doc: doc["shards"][0].update(name="../x"), r"shards\[0\].name must be 'shard-0'"),
    "manifest path": (lambda doc: doc["shards"][0].update(manifest="../m"), r"manifest must be manifest-<generation>"),
    "gone": (lambda doc: doc["shards"][1].update(manifest="manifest-9.json"), "manifest-9.json of the .* missing"),
    "crc": (lambda doc: doc["shards"][1].update(crc32=5), "crc32 must be 00000005 as SHARDS says"),
    "rows": (lambda doc: doc["shards"][2].update(rows=5), "n must be as in the set, 5, got 299"),
    "too many rows": (lambda doc: doc["shards"][2].update(rows=2**40), "at most 1099511627776 rows"),
    "start": (lambda doc: doc["shards"][0].update(first_row=1), "rising first_row"),
    "order": (lambda doc: doc["shards"][2].update(first_row=400), "rising first_row"),
    "overlap": (lambda doc: doc["shards"][3].update(first_row=650), r"next_row must be in 402..650, got 700"),
    "policy": (lambda doc: doc["search"].update(nprobe=10**6), "SHARDS: search.nprobe must be an integer in 1..12"),
    "certificate": (lambda doc: doc.update(certificate={}), "SHARDS: certificate lacks the keys"),
    "twice": (lambda doc: doc["shards"].append(doc["shards"][0]), r"shards\[4\].name must be 'shard-4'"),
}  # fmt: skip


@pytest.mark.parametrize("how", DAMAGE)
def test_a_manifest_is_not_trusted(many: Path, how: str) -> None:
    change, sentence = DAMAGE[how]
    rewrite(many, change)
    with pytest.raises(CorruptIndex, match=sentence) as raised:
        open_index(many)
    assert "\n" not in str(raised.value)
    assert any(problem for problem in verify(many))


def test_damaged_bytes_are_refused(many: Path) -> None:
    whole = (many / "SHARDS").read_bytes()
    for at in range(0, len(whole), 7):
        (many / "SHARDS").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(CorruptIndex):
            open_index(many)
        (many / "SHARDS").write_bytes(whole[:at])
        with pytest.raises(CorruptIndex):
            open_index(many)


def test_a_newer_version_is_refused(many: Path) -> None:
    rewrite(many, lambda doc: doc.update(version=2))
    with pytest.raises(FormatTooNew, match="version 2 is newer than this reader, which reads 1"):
        open_index(many)


def test_a_shard_of_another_model_is_refused(many: Path, tmp_path: Path) -> None:
    write_sharded(tmp_path / "other", "cosine", search=PLAIN, dense="f16")
    shutil.rmtree(many / "shard-2")
    shutil.copytree(tmp_path / "other" / "shard-2", many / "shard-2")
    with pytest.raises(CorruptIndex, match="shard-2/manifest-1.json: crc32 must be"):
        open_index(many)
    crc = zlib.crc32((many / "shard-2" / "manifest-1.json").read_bytes())
    rewrite(many, lambda doc: doc["shards"][2].update(crc32=crc))
    with pytest.raises(CorruptIndex, match="must be as in the set"):
        open_index(many)


def test_verify_names_the_shard(many: Path) -> None:
    file = many / "shard-1" / "dense-1.seg"
    data = bytearray(file.read_bytes())
    data[4100] ^= 1
    file.write_bytes(data)
    (many / "stray").touch()
    problems = verify(many)
    assert len(problems) == 2 and problems[0].startswith("stray: ") and problems[1].startswith("shard-1/dense-1.seg: ")
    with pytest.raises(CorruptIndex, match="stray"):
        open_index(many, verify="full")


def test_a_missing_shard_is_named(many: Path) -> None:
    shutil.rmtree(many / "shard-1")
    with pytest.raises(VqdistillError, match="shard-1"):
        open_index(many)
