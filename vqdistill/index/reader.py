"""IndexReader: opens an index, trusting no byte of its structure."""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vqdistill._native import Engine, io_uring_available
from vqdistill.errors import CorruptIndex, InvalidInput
from vqdistill.index.byte_rows import from_bytes
from vqdistill.index.checks import check_deleted, check_list_offsets
from vqdistill.index.files import CURRENT, open_segment, read_manifest, reading
from vqdistill.index.locks import lock_generation
from vqdistill.index.lookup import find, wanted_ids
from vqdistill.index.manifest import Manifest
from vqdistill.index.model_segments import ModelSegments, load_segment
from vqdistill.index.rows import Alive, OpenRows, by_set, decode_text
from vqdistill.index.spec import PAGE, Segment
from vqdistill.index.verify import verify as problems_in
from vqdistill.model.adapter import QueryAdapter
from vqdistill.objects.urls import require_local
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
    _lock: weakref.finalize[[int], IndexReader] | None = None
    """Lets go of the generation; see `index.locks`."""

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        fds: Sequence[dict[str, int]],
        known: Mapping[Segment, npt.NDArray[Any]] | None = None,
        models: dict[bytes, IvfPqModel] | None = None,
        codes: bool = True,
    ) -> None:
        """Load the resident segments out of checked files; called by `open`.

        Parameters
        ----------
        fds : descriptors by kind: those of `manifest.segments`, then those of each added set
        known : resident segments, which need not be loaded again
        models : by their hashes, loaded ones of other generations
        codes : whether to load the codes, without which there is no engine
        """
        self._models = {} if models is None else models
        self.path = path
        self.manifest = manifest
        held = [
            {
                kind: known[segment] if known and segment in known else load_segment(path, segment, files[kind])
                for kind, segment in segments.items()
                if segment.resident and kind != "deleted" and (codes or kind != "codes")
            }
            for files, segments in zip(fds, manifest.segments_by_set, strict=True)
        ]
        self._stored = ModelSegments(path, manifest, fds[0], held[0])
        self.sets = [
            OpenRows(path, rows, files, arrays) for rows, files, arrays in zip(manifest.sets, fds, held, strict=True)
        ]
        """Sets of rows, by rising position."""
        for rows in self.sets:
            check_list_offsets(rows.list_offsets, rows.n, rows.segment("list_offsets"))
        self.alive = Alive(self.sets, self._load_deleted())
        """Rows that are not deleted."""

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
            If `path` is a URL or no directory, or `verify` neither value.
        CorruptIndex, FormatTooNew, FormatTooOld
            If the index cannot be trusted.
        VqdistillError
            If the disk refuses.
        """
        path = require_local(path)
        if verify not in ("headers", "full"):
            raise InvalidInput(f"verify must be one of headers, full, got {verify!r}")
        if verify == "full":
            problems = problems_in(path)
            if problems:
                raise CorruptIndex(f"{problems[0]} (first of {len(problems)} problems)")
        return cls._open_current(path, None)

    def newest(self) -> IndexReader:
        """Open the generation that is current now, sharing the resident segments that both have.

        Returns
        -------
        this reader itself, if it is of that generation

        Raises
        ------
        InvalidInput, CorruptIndex, VqdistillError
            As `open`; also if another index is at the path now.
        """
        self._require_open()
        manifest = read_manifest(self.path)
        return self if (manifest.index_id, manifest.generation) == self._generation else self.reopen()

    def reopen(self) -> IndexReader:
        """Open the generation that is current now, whichever it is, sharing resident segments; raises as `open`."""
        return self._open_current(self.path, self)

    @classmethod
    def _open_current(cls, path: Path, older: IndexReader | None) -> IndexReader:
        while True:
            manifest = read_manifest(path)
            if older is not None and manifest.index_id != older.manifest.index_id:
                raise InvalidInput(f"index {path} must be the one that was opened, but is another one now")
            try:
                with ExitStack() as stack:
                    stack.callback(os.close, lock := lock_generation(path, manifest))
                    reader = cls.open_files(path, manifest, older)
                    stack.pop_all()
                    reader._lock = weakref.finalize(reader, os.close, lock)
                    return reader
            except CorruptIndex:
                # Between CURRENT and the files that it led to, a writer may have gone on and removed them.
                if read_manifest(path).generation == manifest.generation:
                    raise

    @classmethod
    def open_files(
        cls, path: Path, manifest: Manifest, older: IndexReader | None = None, codes: bool = True
    ) -> IndexReader:
        """Open the segments in the directory `path` that a manifest names, which may not be published yet.

        Parameters
        ----------
        older : reader of another generation of the same index, or of another index with the same model, whose memory
            is shared
        codes : whether to load the codes

        Raises
        ------
        CorruptIndex, VqdistillError
            As `open`.
        """
        with ExitStack() as stack:
            fds: list[dict[str, int]] = []
            for segments in manifest.segments_by_set:
                fds.append({})
                for kind, segment in segments.items():
                    fd = fds[-1][kind] = open_segment(path, segment, manifest.index_id, manifest.version)
                    stack.callback(os.close, fd)
                if "dense" in segments:
                    # Rows are read one here, one there: what the system would read ahead is not wanted.
                    os.posix_fadvise(fds[-1]["dense"], 0, 0, os.POSIX_FADV_RANDOM)
                    # Through a descriptor that may not block, io_uring of old kernels reads only what is cached.
                    os.set_blocking(fds[-1]["dense"], True)
            known, models = (None, None) if older is None else (older._resident, older._models)
            reader = cls(path, manifest, fds, known, models, codes)
            for rows in reader.sets:
                stack.callback(rows.forget)
            reader._closer = weakref.finalize(reader, stack.pop_all().close)
        return reader

    @property
    def model(self) -> IvfPqModel:
        """The model; the first access loads what encodes rows, which is not resident otherwise. Readers of other
        generations that were opened from this one share it.
        """
        self._require_open()
        model_id = self.manifest.model_id
        if model_id not in self._models:
            self._models[model_id] = self._stored.load()
        return self._models[model_id]

    def adapter(self, stage: str) -> QueryAdapter | None:
        """The adapter of a stage, "query" or "verify"; None if there is none."""
        return self._stored.adapter(stage)

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
        dense = self.manifest.dense
        rows = {"dense_offset": PAGE, "dense_dtype": dense, "io": io if dense != "none" else "auto"}
        return self._engine_over(**rows, **self._rows_for_engine(io))

    def _engine_over(self, **rows: Any) -> Engine:
        manifest, stored = self.manifest, self._stored
        return Engine(
            metric="l2" if manifest.metric is Metric.L2 else "ip",
            residual=manifest.residual,
            router=stored.arrays["router"],
            coarse=stored.arrays["coarse"],
            mean=stored.arrays["mean"],
            rotation=stored.rotation,
            codewords=stored.arrays["codewords"],
            query_adapter=stored.adapter_arrays("query"),
            verify_adapter=stored.adapter_arrays("verify"),
            **rows,
        )

    def _rows_for_engine(self, io: str) -> dict[str, Any]:
        """Options of an engine that tell of the rows."""
        first, *added = (
            (rows.list_offsets, rows.arrays["codes"], rows.fds.get("dense", -1), self._map_dense(rows, io))
            for rows in self.sets
        )
        of_first = dict(zip(("list_offsets", "packed", "dense_fd", "dense_map"), first, strict=True))
        return of_first | {"added": added, "alive": self.alive.for_engine()}

    def _map_dense(self, rows: OpenRows, io: str) -> mmap.mmap | None:
        """Map the dense file of a set; None under "auto" if there is no room in the address space (RLIMIT_AS)."""
        if "dense" not in rows.fds or io not in ("auto", "map"):
            return None
        try:
            dense = mmap.mmap(rows.fds["dense"], 0, access=mmap.ACCESS_READ)
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
        self._require_open()
        wanted, back = np.unique(positions, return_inverse=True)
        return by_set(self.sets, wanted, _texts_of)[back].reshape(positions.shape)

    def positions_of(self, ids: Any) -> npt.NDArray[np.int64]:
        """Look up the positions of external ids on disk; only the pages on the way are read.

        Parameters
        ----------
        ids : (b,) external ids of the kind that the index has: row numbers, integers or strings

        Returns
        -------
        (b,) int64, -1 where no row that is alive has the id

        Raises
        ------
        InvalidInput
            If the ids are of another kind, the reader is closed, or the index is of a format version below 4.
        """
        self._require_open()
        if self.manifest.version < 4:
            raise InvalidInput(
                f"ids can be looked up in indexes of format version 4 or later, got {self.manifest.version} at"
                f" {self.path}; compile it again"
            )
        return find(self.sets, self.alive, wanted_ids(ids, self.manifest.ids))

    def rows_of(self, positions: npt.NDArray[np.int64], checked: bool = False) -> npt.NDArray[np.int64]:
        """Look up row numbers of the compiled source; as `ids_of`, with -1 for missing.

        Parameters
        ----------
        checked : whether the positions are known to be in range, as those that an engine gave are
        """
        if not checked:
            self._require_positions(positions, -1)
        return self._integers("rows", positions, self.manifest.next_row)

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
        self._require_open()
        data = by_set(self.sets, positions, lambda rows, local: rows.read("dense", local))
        if self.manifest.dense == "i8":
            return from_bytes(data)
        if self.manifest.dense == "bf16":
            return (data.view("<u2").astype("<u4") << 16).view("<f4")
        return data.view(f"<{self._segment('dense').dtype}").astype(np.float32)

    @property
    def list_sizes(self) -> npt.NDArray[np.int64]:
        """Rows of each list that are alive: (nlist,) int64."""
        alive = self.alive.for_engine()
        if alive is not None:
            return alive[1]
        return np.asarray(np.sum([np.diff(rows.list_offsets) for rows in self.sets], axis=0))

    @property
    def router(self) -> F32Rows:
        """What ranks the lists: (nlist, d) float32."""
        return self._stored.table("router")

    @property
    def resident_bytes(self) -> int:
        """Bytes held in memory: the payloads of the resident segments."""
        return self.manifest.resident_bytes

    @property
    def disk_bytes(self) -> int:
        """Bytes of all files of this generation."""
        with reading(self.path / self.manifest.file):
            small = sum((self.path / name).stat().st_size for name in (CURRENT, self.manifest.file))
        return small + sum(segment.file_bytes for segment in self.manifest.all_segments)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return not self._closer.alive

    def close(self) -> None:
        """Close all files; engines of this reader must not be used any more. Closing twice is fine."""
        self._closer()
        if self._lock is not None:
            self._lock()

    def __enter__(self) -> IndexReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _segment(self, kind: str) -> Segment:
        return self.manifest.segments[kind]

    def _require_open(self) -> None:
        if self.closed:
            raise InvalidInput(f"index {self.path} must be open, but it is closed")

    @property
    def _generation(self) -> tuple[bytes, int]:
        return self.manifest.index_id, self.manifest.generation

    @property
    def _resident(self) -> dict[Segment, npt.NDArray[Any]]:
        """Resident segments, but for `deleted`, which is held inverted."""
        found = {self.manifest.segments[kind]: array for kind, array in self._stored.arrays.items()}
        for rows in self.sets[1:]:
            found |= {rows.segment(kind): array for kind, array in rows.arrays.items()}
        return found

    def payload(self, kind: str) -> npt.NDArray[Any]:
        """Read a segment of the model, or of the first set of rows, whole."""
        return self._stored.payload(kind)

    def _load_deleted(self) -> npt.NDArray[np.uint32] | None:
        if not self.manifest.deleted:
            return None
        bits = self.payload("deleted")
        check_deleted(bits, self.manifest)
        return bits

    def _require_positions(self, positions: npt.NDArray[np.int64], low: int) -> None:
        if getattr(positions, "dtype", None) != np.int64:
            raise InvalidInput(f"positions must be an int64 array, got {getattr(positions, 'dtype', type(positions))}")
        if positions.size and not (low <= positions.min() and positions.max() < self.manifest.n):
            span = f"{positions.min()}..{positions.max()}"
            raise InvalidInput(f"positions must be in [{low}, {self.manifest.n}), got {span}")

    def _integers(self, kind: str, positions: npt.NDArray[np.int64], below: int | None = None) -> npt.NDArray[np.int64]:
        self._require_open()
        flat = by_set(self.sets, positions.reshape(-1), lambda rows, local: rows.integers(kind, local, below))
        return flat.reshape(positions.shape)


def _texts_of(rows: OpenRows, local: npt.NDArray[np.int64]) -> npt.NDArray[np.str_]:
    """String ids of sorted rows of a set; "" for -1."""
    segment = rows.segment("ids_bytes")
    texts = ["" for row in local.tolist() if row < 0]
    texts += [decode_text(data, segment) for data in rows.texts(local[len(texts) :])]
    return np.array(texts, dtype=np.str_)
