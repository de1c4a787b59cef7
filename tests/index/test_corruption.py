"""Damage of any kind to any file: our exception when opening, or a problem found by verify; never other answers."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.index.support import (
    edit_manifest,
    flip,
    make_sample,
    manifest_file,
    open_fds,
    set_manifest,
    set_payload,
    snapshot,
    write_sample,
)
from vqdistill.errors import CorruptIndex, FormatTooNew, FormatTooOld, InvalidInput, VqdistillError
from vqdistill.index.files import open_segment, read_manifest
from vqdistill.index.gc import gc
from vqdistill.index.reader import IndexReader
from vqdistill.index.spec import MANIFEST_MAX_BYTES, PAGE, pack_header
from vqdistill.index.update import IndexUpdater
from vqdistill.index.verify import verify

REFUSALS = (CorruptIndex, FormatTooNew, FormatTooOld)
SAMPLES = {
    "str": make_sample(units=(3, 2)),
    "int64": make_sample(ids="int64", dense="i8", additive=True),
    "bytes": make_sample(ids="rows", dense="i8", additive=True, tables="i8"),
    "halves": make_sample(ids="int64", dense="bf16", additive=True, tables="f16", units=(2, 0)),
    "rows": make_sample(ids="rows"),
}
ADAPTERS = [f"{stage}_{part}" for stage in ("query", "verify") for part in ("down", "bias", "up")]
FILES = ["CURRENT", "manifest-1.json"] + [
    f"{kind}-1.seg"
    for kind in [
        "codes",
        "list_offsets",
        "router",
        "rotation",
        "codewords",
        "mean",
        "coarse",
        "doc_codewords",
        "rows",
        "dense",
        "ids_offsets",
        "ids_bytes",
        "id_keys",
        "id_order",
        *ADAPTERS,
    ]
]
SEGMENTS = [name for name in FILES if name.endswith(".seg")]


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clean") / "x.vqd"
    write_sample(path, SAMPLES["str"])
    return path


@pytest.fixture
def index(tmp_path: Path, clean: Path) -> Path:
    """A fresh copy to damage."""
    shutil.copytree(clean, tmp_path / "x.vqd")
    return tmp_path / "x.vqd"


def refused(path: Path) -> str:
    """Require that the index is refused with one sentence and without leaking a descriptor; return the sentence."""
    fds = open_fds()
    with pytest.raises(REFUSALS) as caught:
        IndexReader.open(path)
    message = str(caught.value)
    assert message and "\n" not in message and len(message) < 400
    del caught
    assert open_fds() == fds
    return message


def test_the_samples_are_clean(clean: Path) -> None:
    assert sorted(os.listdir(clean)) == sorted(FILES)
    assert verify(clean) == []


def test_every_byte_of_current(index: Path) -> None:
    good = (index / "CURRENT").read_bytes()
    for at in range(len(good)):
        for bit in range(8):
            (index / "CURRENT").write_bytes(good[:at] + bytes([good[at] ^ 1 << bit]) + good[at + 1 :])
            refused(index)


@pytest.mark.parametrize("mask", [1, 2, 0x20, 0x80])
def test_every_byte_of_the_manifest(index: Path, mask: int) -> None:
    for at in range((index / "manifest-1.json").stat().st_size):
        flip(index / "manifest-1.json", at, mask)
        assert refused(index).startswith("manifest-1.json: crc32 must be")
        flip(index / "manifest-1.json", at, mask)


@pytest.mark.parametrize("name", SEGMENTS)
def test_every_byte_of_every_header(index: Path, name: str) -> None:
    manifest = read_manifest(index)
    segment = manifest.segments[name[: -len("-1.seg")]]
    for at in range(PAGE):
        mask = 1 << at % 8
        flip(index / name, at, mask)
        with pytest.raises(CorruptIndex, match=f"{name}: "):
            open_segment(index, segment, manifest.index_id)
        if at < 100 or at % 500 == 0 or at >= PAGE - 4:
            assert refused(index).startswith(name)
        if at % 500 == 0:
            assert len(verify(index)) == 1
        flip(index / name, at, mask)


@pytest.mark.parametrize("name", SEGMENTS)
def test_payload_and_padding(index: Path, name: str) -> None:
    """verify names the file; what is resident, apart from the codes, is refused when opening as well."""
    size = (index / name).stat().st_size
    for at in {PAGE, size - 1, *random.Random(name).sample(range(PAGE, size), 12)}:
        flip(index / name, at, 1 << at % 8)
        problems = verify(index)
        assert len(problems) == 1 and problems[0].startswith(f"{name}: "), at
        with pytest.raises(CorruptIndex, match=name):
            IndexReader.open(index, "full")
        segment = read_manifest(index).segments[name[: -len("-1.seg")]]
        if segment.resident and segment.kind != "codes" and at < PAGE + segment.bytes:
            assert "crc32 of payload bytes 0.." in refused(index)
        flip(index / name, at, 1 << at % 8)


@pytest.mark.parametrize("change", [-PAGE, -1, 1, PAGE])
@pytest.mark.parametrize("name", FILES)
def test_wrong_length(index: Path, name: str, change: int) -> None:
    size = (index / name).stat().st_size
    os.truncate(index / name, max(0, size + change))
    assert name.split("-")[0] in refused(index)
    assert verify(index)


@pytest.mark.parametrize("name", FILES)
def test_empty_and_missing(index: Path, name: str) -> None:
    os.truncate(index / name, 0)
    refused(index)
    (index / name).unlink()
    assert f"{name} of the index {index} is missing" in refused(index)
    assert len(verify(index)) == 1


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("what", ["directory", "pipe", "device"])
def test_no_regular_file(index: Path, name: str, what: str) -> None:
    path = index / name
    path.unlink()
    make = {"directory": path.mkdir, "pipe": lambda: os.mkfifo(path), "device": lambda: path.symlink_to("/dev/zero")}
    make[what]()
    assert f"{name} must be a regular file" in refused(index)


@pytest.mark.parametrize("name", FILES)
def test_files_of_another_index(index: Path, tmp_path: Path, name: str) -> None:
    """Two builds of the same shape differ in their id alone: nothing of one passes in the other."""
    other = tmp_path / "other.vqd"
    write_sample(other, SAMPLES["str"], index_id=bytes(range(1, 17)))
    shutil.copy(other / name, index / name)
    message = refused(index)
    assert message.startswith(f"{name}: header index id must be 000102") if name in SEGMENTS else "crc32" in message


def test_segments_of_the_same_shape_do_not_stand_in_for_each_other(index: Path) -> None:
    os.rename(index / "router-1.seg", index / "swap")
    os.rename(index / "coarse-1.seg", index / "router-1.seg")
    os.rename(index / "swap", index / "coarse-1.seg")
    assert "header kind must be 'router', got 'coarse'" in refused(index)
    assert len(verify(index)) == 2


def test_stray_files_are_problems_but_no_obstacle(index: Path) -> None:
    (index / "notes.txt").touch()
    (index / "CURRENT.tmp-0123456789ab").touch()
    (index / "sub").mkdir()
    problems = verify(index)
    # Temporary files and those of other generations are what a killed writer leaves: no problem, and gc takes them.
    (index / "codes-2.seg").touch()
    (index / "manifest-7.json").touch()
    assert [problem.split(":")[0] for problem in problems] == ["notes.txt", "sub"] and verify(index) == problems
    IndexReader.open(index).close()


def test_symbolic_links_are_fine(index: Path, tmp_path: Path) -> None:
    shutil.move(index / "dense-1.seg", tmp_path / "elsewhere")
    (index / "dense-1.seg").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "link.vqd").symlink_to(index)
    assert verify(tmp_path / "link.vqd") == []
    IndexReader.open(tmp_path / "link.vqd", "full").close()


@pytest.mark.parametrize(("make", "found"), [(lambda path: None, "nothing"), (Path.touch, "a file")])
def test_no_directory(tmp_path: Path, make: Callable[[Path], None], found: str) -> None:
    make(tmp_path / "x.vqd")
    for use in (IndexReader.open, verify, IndexUpdater, gc):
        with pytest.raises(InvalidInput, match=f"index must be a directory made by vqdistill, got {found} at"):
            use(tmp_path / "x.vqd")


def test_a_directory_that_is_no_index(tmp_path: Path) -> None:
    assert refused(tmp_path).startswith("CURRENT of the index")


def test_a_manifest_beyond_the_cap_is_not_read(index: Path) -> None:
    os.truncate(index / "manifest-1.json", MANIFEST_MAX_BYTES + 1)
    assert refused(index) == f"manifest-1.json: file size must be at most {MANIFEST_MAX_BYTES} bytes, got 67108865"


def test_a_disk_that_cannot_be_read(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("vqdistill.index.files.os.preadv", fail)
    with pytest.raises(VqdistillError, match=r"cannot read .*CURRENT: Input/output error"):
        IndexReader.open(index)


def test_a_disk_that_fails_in_one_segment_is_a_problem_of_that_segment(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preadv = os.preadv

    def fail(fd: int, buffers: Any, offset: int) -> int:
        if os.readlink(f"/proc/self/fd/{fd}").endswith("dense-1.seg") and offset:
            raise OSError(5, "Input/output error")
        return preadv(fd, buffers, offset)

    monkeypatch.setattr("vqdistill.index.files.os.preadv", fail)
    assert verify(index) == [f"cannot read {index}/dense-1.seg: Input/output error"]


LEARNED = {"queries": 3, "depth": 2, "codes": True, "anchors": False}


def test_versions_and_features(index: Path) -> None:
    good = manifest_file(index).read_bytes()
    range_read = "this vqdistill reads versions 1 to 4"
    for edit, error, message in [
        ({"version": 5}, FormatTooNew, f"format version 5 is newer than this reader; {range_read}"),
        ({"version": 5, "surprise": 1}, FormatTooNew, range_read),
        ({"version": 0}, FormatTooOld, f"format version 0 is no longer supported; {range_read}"),
        ({"required_features": ["tombstones"]}, FormatTooNew, f"'tombstones'.* are unknown; {range_read}"),
        ({"required_features": [1]}, CorruptIndex, "must be a list of strings"),
        ({"version": 1}, CorruptIndex, "has the unknown keys .'adapters', "),
        ({"version": 2}, CorruptIndex, "has the unknown keys .'adapters', "),
        ({"version": "1"}, CorruptIndex, "version must be an integer"),
        ({"required_features": ["learned"]}, CorruptIndex, "lacks the keys .'learned'."),
        ({"learned": LEARNED}, CorruptIndex, "has the unknown keys .'learned'."),
        ({"required_features": ["learned"], "learned": 3}, CorruptIndex, "learned must be a JSON object"),
        (
            {"required_features": ["learned"], "learned": LEARNED | {"queries": -1}},
            CorruptIndex,
            "learned.queries must be an integer",
        ),
        ({"required_features": ["learned"], "learned": LEARNED | {"depth": 0}}, CorruptIndex, "learned.depth must be"),
        ({"required_features": ["learned"], "learned": LEARNED}, CorruptIndex, "lacks the keys .'learn_queries'"),
        ({"format": "faiss"}, CorruptIndex, "format must be 'vqdistill', got 'faiss'"),
    ]:
        edit_manifest(index, lambda doc, edit=edit: doc.update(edit))  # type: ignore[misc]
        for read in (IndexReader.open, verify) if error is not CorruptIndex else (IndexReader.open,):
            with pytest.raises(error, match=message):
                read(index)
        set_manifest(index, good)


def _floats(index: Path, kind: str, value: float) -> bytes:
    data = np.frombuffer((index / f"{kind}-1.seg").read_bytes()[PAGE:], dtype="<f4").copy()
    data[0] = value
    return data[: read_manifest(index).segments[kind].bytes // 4].tobytes()


@pytest.fixture
def additive(tmp_path: Path) -> Path:
    write_sample(tmp_path / "additive.vqd", SAMPLES["int64"])
    return tmp_path / "additive.vqd"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_space_that_is_not_finite(additive: Path, value: float) -> None:
    set_payload(additive, "doc_space", _floats(additive, "doc_space", value))
    assert verify(additive) == ["doc_space-1.seg: values must be finite, got NaN or infinity"]


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_a_space_without_an_inverse_encodes_nothing(additive: Path, value: float) -> None:
    """Searching needs no space; the model, which encodes, refuses it."""
    set_payload(additive, "doc_space", _floats(additive, "doc_space", value))
    with IndexReader.open(additive) as reader:
        with pytest.raises(CorruptIndex, match=r"doc_space-1.seg: a space must be symmetric and positive definite"):
            _ = reader.model
        assert reader.engine() is not None


def _ints(index: Path, kind: str, edit: Callable[[np.ndarray], None]) -> bytes:
    count = read_manifest(index).segments[kind].bytes // 8
    data = np.frombuffer((index / f"{kind}-1.seg").read_bytes()[PAGE:], dtype="<i8")[:count].copy()
    edit(data)
    return data.tobytes()


def _set(at: int, value: int) -> Callable[[np.ndarray], None]:
    return lambda data: data.__setitem__(at, value)


HOSTILE_OFFSETS = [_set(0, 1), _set(-1, 71), _set(-1, 69), _set(1, -5), _set(1, 2**62), _set(2, -(2**63)), _set(0, -1)]


@pytest.mark.parametrize("edit", HOSTILE_OFFSETS)
def test_list_offsets_that_checksums_vouch_for(index: Path, edit: Callable[[np.ndarray], None]) -> None:
    """The native code trusts them, so they are checked at every open."""
    set_payload(index, "list_offsets", _ints(index, "list_offsets", edit))
    assert refused(index).startswith("list_offsets-1.seg: offsets must grow from 0 to 70")
    assert len(verify(index)) == 1


def test_files_of_version_1_in_an_index_of_today(index: Path) -> None:
    """The version stands in every header, so that no file of another format passes."""
    manifest = read_manifest(index)
    segment = manifest.segments["router"]
    data = (index / segment.file).read_bytes()
    (index / segment.file).write_bytes(pack_header(segment, manifest.index_id, 1) + data[PAGE:])
    assert refused(index) == "router-1.seg: header version must be 4, got 1"


@pytest.mark.parametrize("kind", ["router", "codewords", "coarse", "query_down", "query_up"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_half_tables_that_are_not_finite(tmp_path: Path, kind: str, value: float) -> None:
    index = tmp_path / "x.vqd"
    write_sample(index, SAMPLES["halves"])
    data = np.frombuffer((index / f"{kind}-1.seg").read_bytes()[PAGE:], "<f2").copy()
    data[1] = value
    set_payload(index, kind, data[: read_manifest(index).segments[kind].bytes // 2].tobytes())
    assert verify(index) == [f"{kind}-1.seg: values must be finite, got NaN or infinity"]


@pytest.mark.parametrize("kind", ["router", "codewords", "coarse"])
@pytest.mark.parametrize(
    ("at", "value", "problem"),
    [
        (slice(4), np.float32(np.nan).tobytes(), "scales must be finite, got NaN or infinity"),
        (slice(4, 5), b"\x80", "bytes must be in -127..127, got -128"),
    ],
)
def test_byte_tables_that_no_writer_makes(tmp_path: Path, kind: str, at: slice, value: bytes, problem: str) -> None:
    index = tmp_path / "x.vqd"
    write_sample(index, SAMPLES["bytes"])
    data = bytearray((index / f"{kind}-1.seg").read_bytes()[PAGE:])
    data[at] = value
    set_payload(index, kind, bytes(data[: read_manifest(index).segments[kind].bytes]))
    assert verify(index) == [f"{kind}-1.seg: {problem}"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["router", "rotation", "codewords", "mean", "coarse", "doc_codewords", *ADAPTERS])
def test_values_that_are_not_finite(index: Path, kind: str, value: float) -> None:
    set_payload(index, kind, _floats(index, kind, value))
    assert verify(index) == [f"{kind}-1.seg: values must be finite, got NaN or infinity"]


@pytest.mark.parametrize(
    "edit", [_set(0, -1), _set(0, 70), _set(5, -(2**63)), lambda data: data.__setitem__(0, data[1])]
)
def test_rows_that_are_no_permutation(index: Path, edit: Callable[[np.ndarray], None]) -> None:
    set_payload(index, "rows", _ints(index, "rows", edit))
    (problem,) = verify(index)
    assert problem.startswith("rows-1.seg: ")
    with IndexReader.open(index) as reader:
        try:
            rows = reader.rows_of(np.arange(70))
        except CorruptIndex:
            return
        assert rows.min() >= 0 and rows.max() < 70


def test_an_id_that_means_missing(tmp_path: Path) -> None:
    index = tmp_path / "x.vqd"
    write_sample(index, SAMPLES["int64"])
    set_payload(index, "ids", _ints(index, "ids", _set(7, -1)))
    (problem,) = verify(index)
    assert problem.startswith("ids-1.seg: numbers must not be -1")
    with IndexReader.open(index) as reader, pytest.raises(CorruptIndex, match=r"ids-1\.seg: numbers must not be -1"):
        reader.ids_of(np.array([7]))


@pytest.mark.parametrize("edit", [_set(0, 1), _set(-1, 10**9), _set(3, -(2**63)), _set(3, 2**62), _set(1, 0)])
def test_id_offsets_that_do_not_grow(index: Path, edit: Callable[[np.ndarray], None]) -> None:
    set_payload(index, "ids_offsets", _ints(index, "ids_offsets", edit))
    (problem,) = verify(index)
    assert problem.startswith("ids_offsets-1.seg: ")
    with IndexReader.open(index) as reader:
        for at in range(70):
            try:
                assert reader.ids_of(np.array([at])).shape == (1,)
            except CorruptIndex as error:
                assert str(error).startswith("ids_")


def test_ids_that_are_no_text(index: Path) -> None:
    size = read_manifest(index).segments["ids_bytes"].bytes
    set_payload(index, "ids_bytes", b"\xff" * size)
    with IndexReader.open(index) as reader, pytest.raises(CorruptIndex, match=r"ids_bytes-1\.seg: ids must be UTF-8"):
        reader.ids_of(np.array([3]))
    assert verify(index) == ["ids_bytes-1.seg: ids must be UTF-8, got other bytes"]


def test_codes_in_the_padding_of_the_last_block(index: Path) -> None:
    codes = bytearray((index / "codes-1.seg").read_bytes()[PAGE : PAGE + read_manifest(index).segments["codes"].bytes])
    codes[-1] = 1
    set_payload(index, "codes", bytes(codes))
    assert verify(index) == ["codes-1.seg: the 26 rows of padding must have code 0, got others"]


@pytest.mark.parametrize("kind", SAMPLES)
def test_answers_do_not_change_silently(tmp_path: Path, kind: str) -> None:
    """Flip a random bit anywhere: refused, or found by verify, or (never) unnoticed."""
    path = tmp_path / "x.vqd"
    write_sample(path, SAMPLES[kind])
    good, rng = snapshot(path), random.Random(kind)
    for _ in range(150):
        name = rng.choice(sorted(good))
        at = rng.randrange(len(good[name]))
        flip(path / name, at, 1 << rng.randrange(8))
        assert verify(path), (name, at)
        (path / name).write_bytes(good[name])
    assert verify(path) == []
