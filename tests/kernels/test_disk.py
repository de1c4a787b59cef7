"""How an engine reads its dense rows: every way gives the same answers, reads what is needed, and survives a fork."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import vqdistill
from tests.kernels.support import STRIDES, Shape, encode_dense, random_arrays, small_integers
from vqdistill import searcher
from vqdistill._native import RowReader, io_uring_available
from vqdistill.errors import InvalidInput
from vqdistill.index import reader as index_reader
from vqdistill.kernels import Engine
from vqdistill.kernels.reference import ReferenceEngine

PAGE = 4096
WAYS = ["auto", "map", "pread", "uring"]
needs_uring = pytest.mark.skipif(not io_uring_available(), reason="the system denies io_uring")
WAYS_HERE = [pytest.param(way, marks=needs_uring if way == "uring" else ()) for way in WAYS]
LIBC = ctypes.CDLL(None, use_errno=True)


def resident_pages(fd: int) -> set[int]:
    """Return the pages of a file that the page cache holds, as mincore tells."""
    size = os.fstat(fd).st_size
    with mmap.mmap(fd, 0, access=mmap.ACCESS_COPY) as mapped:
        pages = (ctypes.c_ubyte * -(-size // PAGE))()
        address = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
        assert LIBC.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), pages) == 0
    return {page for page, state in enumerate(pages) if state & 1}


def evict(fd: int) -> None:
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    if resident_pages(fd):
        pytest.skip("this file system keeps its files in memory")


class Dense:
    """A file of dense rows behind 100 bytes of something else."""

    def __init__(self, folder: Path, dtype: str = "f16", n: int = 5000, d: int = 33) -> None:
        rng = np.random.default_rng(1)
        self.dtype, self.d, self.stride = dtype, d, STRIDES[dtype](d)
        self.rows = small_integers(rng, n, d)
        self.bytes = encode_dense(dtype, self.rows.astype(np.float64), rng)
        self.fd = os.open(folder / "dense", os.O_RDWR | os.O_CREAT)
        os.pwrite(self.fd, self.bytes.tobytes(), 100)
        os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_RANDOM)
        self.map = mmap.mmap(self.fd, 0, access=mmap.ACCESS_READ)
        self.map.madvise(mmap.MADV_RANDOM)

    def reader(self, io: str, depth: int = 64) -> RowReader:
        mapped = self.map if io in ("auto", "map") else None
        return RowReader(fd=self.fd, map=mapped, offset=100, dtype=self.dtype, d=self.d, io=io, depth=depth)

    def pages_of(self, positions: np.ndarray) -> set[int]:
        begins = 100 + positions.ravel() * self.stride
        ends = begins + self.stride - 1
        return {page for a, b in zip(begins // PAGE, ends // PAGE, strict=True) for page in range(a, b + 1)}


@pytest.fixture
def dense(tmp_path):
    dense = Dense(tmp_path)
    yield dense
    os.close(dense.fd)


def some_positions(queries, count, n=5000):
    rng = np.random.default_rng(2)
    return np.stack([rng.choice(n, count, replace=False) for _ in range(queries)])


@pytest.mark.parametrize("io", WAYS_HERE)
@pytest.mark.parametrize("dtype", ["f32", "f16", "i8"])
@pytest.mark.parametrize("metric", ["ip", "l2"])
def test_every_way_equals_the_reference(tmp_path, io, dtype, metric):
    shape = Shape(n=3000, d=33, dense_dtype=dtype, metric=metric)
    dense = Dense(tmp_path, dtype, shape.n, shape.d)
    arrays, queries = random_arrays(shape), small_integers(np.random.default_rng(3), 9, shape.d)
    options = {"k": 20, "nprobe": 4, "refine": 90}
    wanted = ReferenceEngine(**arrays, dense_dtype=dtype, dense=dense.bytes).search(queries, **options)
    place = {"dense_fd": dense.fd, "dense_offset": 100, "dense_dtype": dtype, "dense_map": dense.map, "io": io}
    native = Engine(**arrays, **place)
    for threads in (1, 3):
        scores, positions, _ = native.search(queries, threads=threads, **options)
        assert np.array_equal(scores, wanted[0]) and np.array_equal(positions, wanted[1])
    os.close(dense.fd)


class ColdRead:
    """Sixty rows of a file of which nothing was in the page cache, and what that read of the file."""

    def __init__(self, dense: Dense, io: str, depth: int) -> None:
        positions = some_positions(3, 20)
        queries = small_integers(np.random.default_rng(4), 3, dense.d)
        self.needed = dense.pages_of(positions)
        dense.map.madvise(mmap.MADV_DONTNEED)
        evict(dense.fd)
        scores, counts = dense.reader(io, depth).rerank("ip", queries, positions)
        assert np.array_equal(scores, np.einsum("qd,qrd->qr", queries, dense.rows[positions]))
        assert resident_pages(dense.fd) == self.needed
        assert counts[:, 0].tolist() == [20, 20, 20]
        self.pages, self.waits = counts[:, 1].sum(), counts[:, 3].sum()


# One read at a time waits for each of them.
@pytest.mark.parametrize(("io", "depth"), [pytest.param("uring", 64, marks=needs_uring), ("pread", 1)])
def test_cold_rows_are_read_and_nothing_else(dense, io, depth):
    cold = ColdRead(dense, io, depth)
    assert cold.pages == len(cold.needed) and cold.waits > 0


def test_cold_rows_from_the_map_never_wait_for_a_read(dense):
    cold = ColdRead(dense, "map", 64)
    assert cold.pages >= len(cold.needed) and cold.waits == 0


# These ask the system for a row without waiting. Some disks have read it by the time of the answer, as if it had
# been cached, most of the time or always: then no read waits, and "auto" takes rows from the map.
@pytest.mark.parametrize("io", ["auto", "pread"])
def test_cold_rows_are_waited_for_where_the_system_has_to(dense, io):
    for _ in range(20):
        cold = ColdRead(dense, io, 64)
        exact = cold.pages == len(cold.needed)
        assert exact or (io == "auto" and cold.pages > len(cold.needed))
        if cold.waits and exact:
            return
    pytest.skip("this disk answers before a read of it would have to wait")


@pytest.mark.parametrize("io", WAYS_HERE)
@pytest.mark.parametrize("depth", [1, 2, 64, 4096])
def test_depths(dense, io, depth):
    positions = some_positions(5, 200)
    queries = small_integers(np.random.default_rng(4), 5, dense.d)
    scores, counts = dense.reader(io, depth).rerank("ip", queries, positions)
    assert np.array_equal(scores, np.einsum("qd,qrd->qr", queries, dense.rows[positions]))
    assert counts[:, 0].sum() == 1000


def test_no_positions(dense):
    for io in ("auto", "map", "pread"):
        scores, counts = dense.reader(io).rerank("ip", np.zeros((2, dense.d), np.float32), np.zeros((2, 0), np.int64))
        assert scores.shape == (2, 0) and not counts.any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"io": "aio"}, "io must be one of auto, map, pread, uring, got aio"),
        ({"io": "map", "dense_map": None}, "io must be one of auto, pread, uring where the file cannot be mapped"),
        ({"dense_map": b"x" * 100}, "dense_map must be the whole file, of .* bytes at least, got 100"),
    ],
)
def test_wrong_way_to_read(dense, changes, message):
    shape = Shape(n=5000, d=33)
    place = {"dense_fd": dense.fd, "dense_offset": 100, "dense_dtype": "f16", "dense_map": dense.map}
    with pytest.raises(ValueError, match=message):
        Engine(**random_arrays(shape), **(place | changes))


def test_map_that_is_no_buffer(dense):
    with pytest.raises(TypeError, match="dense_map must be a buffer or None, got int"):
        Engine(**random_arrays(Shape()), dense_map=3)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    rows = np.random.default_rng(5).standard_normal((2000, 64)).astype(np.float32)
    path = tmp_path_factory.mktemp("disk") / "rows.vqd"
    vqdistill.compile(rows, path, queries=rows[:200], metric="ip", ram="8B/vec", dense="f16", threads=1)
    return path, rows[:50]


@pytest.mark.parametrize("io", WAYS_HERE)
def test_searcher_takes_every_way(index, io):
    path, queries = index
    wanted = searcher.open(path).search(queries, k=5)
    found = searcher.open(path, io=io).search(queries, k=5)
    assert np.array_equal(found.ids, wanted.ids) and np.array_equal(found.scores, wanted.scores)


def test_searcher_refuses_another_way(index):
    with pytest.raises(InvalidInput, match="io must be one of auto, map, pread, uring, got 'mmap'"):
        searcher.open(index[0], io="mmap")


def test_denied_io_uring_is_one_sentence(index, monkeypatch):
    monkeypatch.setattr(index_reader, "io_uring_available", lambda: False)
    with pytest.raises(InvalidInput, match="io must be one of auto, map, pread where the system denies io_uring"):
        searcher.open(index[0], io="uring")


def test_denied_map_is_one_sentence_or_does_without(index, monkeypatch):
    path, queries = index
    wanted = searcher.open(path).search(queries, k=5)

    def deny(*_, **__):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(index_reader.mmap, "mmap", deny)
    found = searcher.open(path).search(queries, k=5)
    assert np.array_equal(found.ids, wanted.ids)
    with pytest.raises(InvalidInput, match="io must be one of auto, pread, uring, got 'map': Cannot allocate memory"):
        searcher.open(path, io="map")


FORK = """
import os, sys
import numpy as np
from vqdistill._native import RowReader

fd = os.open(sys.argv[1], os.O_RDONLY)
reader = RowReader(fd=fd, map=None, offset=100, dtype="f16", d=33, io=sys.argv[2])
positions = np.arange(0, 5000, 50)[None]


def cold():
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    return reader.rerank("ip", np.ones((1, 33), np.float32), positions)[0].tolist()


wanted = cold()
child = os.fork()
same = cold() == wanted
if child == 0:
    sys.exit(0 if same else 3)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0 and same
"""


@pytest.mark.parametrize("io", [pytest.param("uring", marks=needs_uring), "pread"])
def test_fork_and_exit(dense, tmp_path, io):
    os.fsync(dense.fd)
    command = [sys.executable, "-c", FORK, str(tmp_path / "dense"), io]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
