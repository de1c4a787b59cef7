"""IndexReader: opens an index, trusting no byte of its structure; verify() checks every byte there is."""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vqdistill._native import Engine, io_uring_available
from vqdistill.errors import CorruptIndex, InvalidInput, VqdistillError
from vqdistill.index.byte_rows import from_bytes
from vqdistill.index.checks import check_list_offsets, check_not_missing, checksum_problems, segment_problems
from vqdistill.index.files import (
    CURRENT,
    as_bytes,
    open_segment,
    read_array,
    read_bytes,
    read_manifest,
    read_rows,
    reading,
)
from vqdistill.index.spec import PAGE, Manifest, Segment
from vqdistill.model.adapter import QueryAdapter
from vqdistill.types import F32Rows, Metric

if TYPE_CHECKING:
    from vqdistill.model.ivfpq import IvfPqModel


class IndexReader:
    """One generation of an index, open for reading; safe under concurrent use by threads.

    Resident segments are read into anonymous memory. Of the others only descriptors are kept, so that what was opened
    stays readable when the directory is renamed or removed. A native engine reads through a descriptor of its reader:
    keep the reader open as long as the engine is used.
    """

    _closer: weakref.finalize[[], IndexReader]

    def __init__(self, path: Path, manifest: Manifest, fds: dict[str, int]) -> None:
        """Load the resident segments out of checked files; called by `open`."""
        self.path = path
        self.manifest = manifest
        self._fds = fds
        self._maps: dict[str, npt.NDArray[np.int64] | None] = {}
        self._arrays = {kind: self._load(kind) for kind, segment in manifest.segments.items() if segment.resident}
        check_list_offsets(self._arrays["list_offsets"], manifest)

    @classmethod
    def open(cls, path: str | Path, verify: str = "headers") -> IndexReader:
        """Open the index at `path`.

        Parameters
        ----------
        path : directory of the index
        verify : "headers" checks CURRENT, manifest, headers, file sizes, and the content of all resident segments but
            the codes; "full" checks every byte first, as `verify()` does

        Raises
        ------
        InvalidInput
            If `path` is no directory, or `verify` neither value.
        CorruptIndex, FormatTooNew, FormatTooOld
            If the index cannot be trusted.
        VqdistillError
            If the disk refuses.
        """
        path = Path(path)
        if verify not in ("headers", "full"):
            raise InvalidInput(f"verify must be one of headers, full, got {verify!r}")
        if verify == "full":
            problems = list(_problems(path))
            if problems:
                raise CorruptIndex(f"{problems[0]} (first of {len(problems)} problems)")
        return cls.open_files(path, read_manifest(path))

    @classmethod
    def open_files(cls, path: Path, manifest: Manifest) -> IndexReader:
        """Open the segments in the directory `path` that a manifest names, which may not be published yet.

        Raises
        ------
        CorruptIndex, VqdistillError
            As `open`.
        """
        with ExitStack() as stack:
            fds = {}
            for kind, segment in manifest.segments.items():
                fds[kind] = open_segment(path, segment, manifest.index_id, manifest.version)
                stack.callback(os.close, fds[kind])
            if "dense" in fds:
                # Rows are read one here, one there: what the system would read ahead is not wanted.
                os.posix_fadvise(fds["dense"], 0, 0, os.POSIX_FADV_RANDOM)
                # Through a descriptor that may not block, io_uring of old kernels reads only what the page cache has.
                os.set_blocking(fds["dense"], True)
            reader = cls(path, manifest, fds)
            stack.callback(reader._maps.clear)
            reader._closer = weakref.finalize(reader, stack.pop_all().close)
        return reader

    @cached_property
    def model(self) -> IvfPqModel:
        """The model; the first access loads what encodes rows, which is not resident otherwise."""
        # Here, because its encoder loads Numba, which opening and searching must not.
        from vqdistill.model.ivfpq import IvfPqModel
        from vqdistill.model.space import Space

        self._require_open()
        space = None
        if "doc_space" in self.manifest.segments:
            try:
                space = Space.of_forward(self._load("doc_space"))
            except InvalidInput as error:
                raise CorruptIndex(f"{self.manifest.segments['doc_space'].file}: {error}") from None
        arrays = self._arrays
        return IvfPqModel(
            metric=self.manifest.metric,
            residual=self.manifest.residual,
            mean=arrays["mean"],
            coarse=self._table("coarse"),
            router=self.router,
            rotation=self._rotation,
            codewords=self._table("codewords"),
            doc_codewords=self._load("doc_codewords"),
            space=space,
            query_adapter=self.adapter("query"),
            verify_adapter=self.adapter("verify"),
        )

    def adapter(self, stage: str) -> QueryAdapter | None:
        """The adapter of a stage, "query" or "verify"; None if there is none."""
        arrays = self._adapter_arrays(stage)
        if arrays is None:
            return None
        down, bias, up, rank, unit = arrays
        down, up = (matrix.astype(np.float32, copy=False) for matrix in (down, up))
        return QueryAdapter(down=down, bias=bias, up=up, rank=rank, unit=unit)

    def engine(self, io: str = "auto") -> Engine:
        """Return a native engine over the resident arrays and the dense file; it shares their memory.

        Parameters
        ----------
        io : how dense rows are read: "map" from a memory map, "pread" by a pool of threads, "uring" by io_uring; "auto"
            from the map what the page cache has, and the rest by io_uring, or by the pool where the system denies it

        Raises
        ------
        InvalidInput
            If `io` is none of these or not to be had here, or the reader is closed.
        """
        self._require_open()
        if io not in ("auto", "map", "pread", "uring"):
            raise InvalidInput(f"io must be one of auto, map, pread, uring, got {io!r}")
        if io == "uring" and not io_uring_available():
            raise InvalidInput("io must be one of auto, map, pread where the system denies io_uring, got 'uring'")
        manifest = self.manifest
        return Engine(
            metric="l2" if manifest.metric is Metric.L2 else "ip",
            residual=manifest.residual,
            list_offsets=self._arrays["list_offsets"],
            router=self._arrays["router"],
            coarse=self._arrays["coarse"],
            mean=self._arrays["mean"],
            rotation=self._rotation,
            codewords=self._arrays["codewords"],
            packed=self._arrays["codes"],
            dense_fd=-1 if manifest.dense == "none" else self._fds["dense"],
            dense_offset=PAGE,
            dense_dtype=manifest.dense,
            dense_map=self._map_dense(io) if manifest.dense != "none" and io in ("auto", "map") else None,
            io=io if manifest.dense != "none" else "auto",
            query_adapter=self._adapter_arrays("query"),
            verify_adapter=self._adapter_arrays("verify"),
        )

    def _map_dense(self, io: str) -> mmap.mmap | None:
        """Map the dense file; None under "auto" if there is no room in the address space (RLIMIT_AS)."""
        try:
            dense = mmap.mmap(self._fds["dense"], 0, access=mmap.ACCESS_READ)
        except OSError as error:
            if io == "auto":
                return None
            raise InvalidInput(f"io must be one of auto, pread, uring, got 'map': {error.strerror}") from None
        dense.madvise(mmap.MADV_RANDOM)
        return dense

    def ids_of(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Look up external ids on disk; only the bytes of these positions are read.

        Parameters
        ----------
        positions : int64 of any shape, in [-1, n); -1 is a missing result

        Returns
        -------
        ids of the same shape: int64 with -1 for missing, or str with "" for missing

        Raises
        ------
        InvalidInput
            If a position is out of range, or the reader is closed.
        CorruptIndex
            If what is read cannot be an id.
        """
        if self.manifest.ids == "rows":
            return self.rows_of(positions)
        self._require_positions(positions, -1)
        if self.manifest.ids == "int64":
            return self._integers("ids", positions)
        wanted, back = np.unique(positions, return_inverse=True)
        texts = ["" if position < 0 else "?" for position in wanted.tolist()]
        found = np.flatnonzero(wanted >= 0)
        for at, text in zip(found.tolist(), self._texts(wanted[found]), strict=True):
            texts[at] = text
        return np.array(texts, dtype=np.str_)[back].reshape(positions.shape)

    def rows_of(self, positions: npt.NDArray[np.int64], checked: bool = False) -> npt.NDArray[np.int64]:
        """Look up row numbers of the compiled source; as `ids_of`, with -1 for missing.

        Parameters
        ----------
        checked : whether the positions are known to be in range, as those that an engine gave are
        """
        if not checked:
            self._require_positions(positions, -1)
        rows = self._integers("rows", positions)
        if rows.size and not (rows.min() >= -1 and rows.max() < self.manifest.n):
            raise CorruptIndex(f"{self._segment('rows').file}: rows must be in [0, {self.manifest.n}), got others")
        return rows

    def dense_rows(self, positions: npt.NDArray[np.int64]) -> F32Rows:
        """Read dense rows.

        Parameters
        ----------
        positions : (b,) int64 in [0, n)

        Returns
        -------
        (b, d) float32, as exactly as the index stores them

        Raises
        ------
        InvalidInput
            If a position is out of range, the index has no dense rows, or the reader is closed.
        """
        if self.manifest.dense == "none":
            raise InvalidInput("dense_rows needs an index with dense rows, got one with dense=none")
        self._require_positions(positions, 0)
        data = self._read("dense", positions)
        if self.manifest.dense == "i8":
            return from_bytes(data)
        if self.manifest.dense == "bf16":
            return (data.view("<u2").astype("<u4") << 16).view("<f4")
        return data.view(f"<{self._segment('dense').dtype}").astype(np.float32)

    @property
    def list_offsets(self) -> npt.NDArray[np.int64]:
        """First position of each list, and the number of rows: (nlist + 1,) int64."""
        offsets: npt.NDArray[np.int64] = self._arrays["list_offsets"]
        return offsets

    @property
    def router(self) -> F32Rows:
        """What ranks the lists: (nlist, d) float32."""
        return self._table("router")

    @property
    def resident_bytes(self) -> int:
        """Bytes held in memory: the payloads of the resident segments."""
        return self.manifest.resident_bytes

    @property
    def disk_bytes(self) -> int:
        """Bytes of all files of this generation."""
        with reading(self.path / self.manifest.file):
            small = sum((self.path / name).stat().st_size for name in (CURRENT, self.manifest.file))
        return small + sum(segment.file_bytes for segment in self.manifest.segments.values())

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return not self._closer.alive

    def close(self) -> None:
        """Close all files; engines of this reader must not be used any more. Closing twice is fine."""
        self._closer()

    def __enter__(self) -> IndexReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _rotation(self) -> F32Rows:
        return self._arrays.get("rotation", np.empty((0, self.manifest.d), np.float32))

    def _adapter_arrays(self, stage: str) -> tuple[Any, Any, Any, int, bool] | None:
        """The adapter of a stage as the engine takes it."""
        if stage not in self.manifest.adapters:
            return None
        down, bias, up = (self._arrays[f"{stage}_{part}"] for part in ("down", "bias", "up"))
        return down, bias, up, self.manifest.adapters[stage].rank, self.manifest.metric is Metric.COSINE

    def _table(self, kind: str) -> F32Rows:
        """Router, coarse or codewords as float32."""
        array = self._arrays[kind]
        return from_bytes(array) if array.dtype == np.uint8 else array.astype(np.float32, copy=False)

    def _segment(self, kind: str) -> Segment:
        return self.manifest.segments[kind]

    def _require_open(self) -> None:
        if self.closed:
            raise InvalidInput(f"index {self.path} must be open, but it is closed")

    def _load(self, kind: str) -> npt.NDArray[Any]:
        """Read a segment whole; everything but the codes is small enough to be checked on the way."""
        segment = self._segment(kind)
        array = read_array(self._fds[kind], segment, self.path / segment.file)
        if kind != "codes":
            for problem in checksum_problems(segment, as_bytes(array)):
                raise CorruptIndex(problem)
        return array

    def _require_positions(self, positions: npt.NDArray[np.int64], low: int) -> None:
        if getattr(positions, "dtype", None) != np.int64:
            raise InvalidInput(f"positions must be an int64 array, got {getattr(positions, 'dtype', type(positions))}")
        if positions.size and not (low <= positions.min() and positions.max() < self.manifest.n):
            span = f"{positions.min()}..{positions.max()}"
            raise InvalidInput(f"positions must be in [{low}, {self.manifest.n}), got {span}")

    def _read(self, kind: str, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        self._require_open()
        segment = self._segment(kind)
        return read_rows(self._fds[kind], positions, segment.row_bytes, PAGE, self.path / segment.file)

    def _integers(self, kind: str, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        self._require_open()
        numbers = self._mapped(kind)
        found = positions >= 0
        whole = found.all()
        wanted = positions if whole else positions[found]
        read = self._read(kind, wanted).view("<i8")[:, 0].reshape(wanted.shape) if numbers is None else numbers[wanted]
        check_not_missing(read, self._segment(kind))
        if whole:
            return read
        out = np.full(positions.shape, -1, dtype=np.int64)
        out[found] = read
        return out

    def _mapped(self, kind: str) -> npt.NDArray[np.int64] | None:
        """Map a segment of integers, whose pages stay the page cache's; None if there is no room to map it."""
        if kind not in self._maps:
            try:
                file = mmap.mmap(self._fds[kind], 0, access=mmap.ACCESS_READ)
            except OSError:
                self._maps[kind] = None
            else:
                file.madvise(mmap.MADV_RANDOM)
                self._maps[kind] = np.frombuffer(file, dtype="<i8", count=self._segment(kind).shape[0], offset=PAGE)
        return self._maps[kind]

    def _texts(self, positions: npt.NDArray[np.int64]) -> Iterator[str]:
        """Yield the string ids at sorted positions."""
        ends = self._read("ids_offsets", np.concatenate([positions, positions + 1])).view("<i8")[:, 0]
        segment, fd = self._segment("ids_bytes"), self._fds["ids_bytes"]
        for begin, end in ends.reshape(2, -1).T.tolist():
            if not 0 <= begin < end <= segment.bytes:
                file = self._segment("ids_offsets").file
                raise CorruptIndex(f"{file}: offsets must grow within 0..{segment.bytes}, got {begin} before {end}")
            data = read_bytes(fd, end - begin, PAGE + begin, self.path / segment.file)
            try:
                yield data.decode("utf-8")
            except UnicodeDecodeError:
                raise CorruptIndex(f"{segment.file}: ids must be UTF-8, got {data[:40]!r}") from None


def open_index(path: str | Path, verify: str = "headers") -> IndexReader:
    """Open the index at `path`; see `IndexReader.open`."""
    return IndexReader.open(path, verify)


def verify(path: str | Path) -> list[str]:
    """Check every byte of every file of an index; takes one bit to one byte of memory a row.

    Parameters
    ----------
    path : directory of the index

    Returns
    -------
    list of str
        One sentence for each problem; empty if there is none.

    Raises
    ------
    InvalidInput
        If `path` is no directory.
    FormatTooNew, FormatTooOld
        If the index cannot be checked by this version.
    """
    return list(_problems(Path(path)))


def _problems(path: Path) -> Iterator[str]:
    try:
        manifest = read_manifest(path)
    except CorruptIndex as error:
        yield str(error)
        return
    known = {CURRENT, manifest.file, *(segment.file for segment in manifest.segments.values())}
    with reading(path):
        strays = sorted(set(os.listdir(path)) - known)
    yield from (f"{name}: the directory must hold the index only, got this besides" for name in strays)
    for segment in manifest.segments.values():
        try:
            fd = open_segment(path, segment, manifest.index_id, manifest.version)
        except VqdistillError as error:
            yield str(error)
            continue
        try:
            yield from segment_problems(fd, segment, manifest, path / segment.file)
        except VqdistillError as error:
            yield str(error)
        finally:
            os.close(fd)
