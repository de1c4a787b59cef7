"""IndexWriter: takes encoded rows in input order and publishes a finished index, or leaves nothing behind."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from vqdistill.errors import CorruptIndex, InvalidInput
from vqdistill.index.certificate import Certificate
from vqdistill.index.contents import adapters_of, arrays_of, layout_of, learned_shape, require_model, stored
from vqdistill.index.drift import Drift
from vqdistill.index.files import FileOps, publish_manifest, temporary_name, write_error, write_segment
from vqdistill.index.fit import measure_fit
from vqdistill.index.idtable import write_id_table
from vqdistill.index.intake import RowIntake
from vqdistill.index.manifest import Manifest, read_back
from vqdistill.index.manifest_parts import AdapterShape
from vqdistill.index.merge import packed
from vqdistill.index.policy import SearchPolicy
from vqdistill.index.reader import IndexReader
from vqdistill.index.runs import Chunks, RunLog, Runs
from vqdistill.index.spec import DENSE, ID_BYTES, IDS, TABLES, Layout, Segment
from vqdistill.model.ivfpq import IvfPqModel
from vqdistill.types import Codes, F32Rows

MEMORY_BYTES = 64 << 20
"""Encoded rows gathered before they are written, and put into list order, at a time."""
Certify = Callable[[IndexReader], tuple[SearchPolicy, Certificate]]
"""Measures the finished files of an index before they are published: its defaults, and what searches find."""


class IndexWriter:
    """Write a new index; use it as a context manager.

    Everything is made in a directory `<path>.tmp-<12 hex digits>` beside `path`, which `publish` renames to `path` when
    all is on stable storage. Any failure removes it, KeyboardInterrupt included; only a killed process leaves it, and
    then it may be deleted and is in nobody's way. With a `log` the directory is where that says, and runs stay in
    its own whatever happens. Memory does not grow with the rows, see `Runs`; the disk for a moment holds them twice.
    The same input gives the same bytes.

    Parameters
    ----------
    path : directory to make; must not exist, its parent must
    model : as trained; stored in the index
    dense : "f32", "f16", "bf16", "i8" or "none"; encoding of the rows on disk
    tables : "f32", or for additive codes "f16" or "i8" (a scale a row, see `byte_rows`); how router, coarse and
        codewords are kept. Adapters are float16 beside i8.
    ids : "rows" (row numbers are the ids), "int64" or "str"
    index_id : 16 bytes, a hash of all that the index is made from; written into every file
    memory_bytes : encoded rows in memory at a time, about a third of what the writer takes
    first_row : number of the first row
    log : keeps runs of rows, those of an earlier writer included; `n` says how many rows these have
    ops : file operations; replaced in tests

    Raises
    ------
    InvalidInput
        If an argument is not one of these, the model is malformed, or `path` exists.
    VqdistillError
        If the disk refuses; the message has the path and the reason.
    """

    def __init__(
        self,
        path: str | Path,
        model: IvfPqModel,
        *,
        dense: str,
        ids: str,
        index_id: bytes,
        tables: str = "f32",
        memory_bytes: int = MEMORY_BYTES,
        first_row: int = 0,
        log: RunLog | None = None,
        ops: FileOps | None = None,
    ) -> None:
        self._path = Path(path)
        self._model = model
        self._dense = _one_of("dense", dense, DENSE)
        self._ids = _one_of("ids", ids, IDS)
        self._tables = _one_of("tables", tables, TABLES)
        if len(index_id) != ID_BYTES:
            raise InvalidInput(f"index_id must be {ID_BYTES} bytes, got {len(index_id)}")
        self._index_id = bytes(index_id)
        self._first_row = first_row
        require_model(model, tables)
        self._require_free_path()
        self._intake = RowIntake(model, dense=dense, ids=ids, tables=tables)
        self._ops = FileOps() if ops is None else ops
        self._open = True
        self._memory_bytes = memory_bytes
        self._keeps_runs = log is not None
        self._temporary = temporary_name(self._path)
        if log is not None and log.index is not None:
            self._temporary = log.index
        with self._all_or_nothing():
            if os.path.lexists(self._temporary):  # half an index of a killed process
                self._ops.remove_tree(self._temporary)
            self._ops.make_dir(self._temporary)
            self._runs = Runs(
                self._ops,
                self._temporary if log is None else log.directory,
                self._intake.widths,
                texts=ids == "str",
                nlist=model.nlist,
                memory_bytes=memory_bytes,
                log=log,
                first=first_row,
            )

    @property
    def n(self) -> int:
        """Rows taken so far, those of an earlier writer with the same log included."""
        return self._runs.n

    def add(self, ids: Sequence[Any] | npt.NDArray[Any] | None, codes: Codes, x: F32Rows) -> None:
        """Append rows, in the order of the source.

        Parameters
        ----------
        ids : (b,) external ids: integers other than -1, or non-empty strings; None if ids are the row numbers
        codes : as `model.encode(x)` gives them
        x : (b, d) float32, prepared rows

        Raises
        ------
        InvalidInput
            If shapes, dtypes or values do not fit; the index is given up.
        VqdistillError
            If the disk refuses; the index is given up.
        """
        with self._all_or_nothing():
            self._runs.add(self._intake.encode(ids, codes, x, self.n))

    @property
    def payload_bytes(self) -> int:
        """Payload of all segments, were the index published now."""
        return sum(segment.bytes for segment in self._layout().segments().values())

    def publish(
        self,
        plan: Mapping[str, Any],
        search: SearchPolicy,
        report: Mapping[str, Any],
        certify: Certify | None = None,
        advance: Callable[[int], None] = lambda _: None,
    ) -> Manifest:
        """Write the segments in list order, sync everything and let the index appear at its path.

        If the very last sync (of the parent directory) fails, the complete index stays at its path.

        Parameters
        ----------
        plan, report : JSON objects, stored as they are
        search : defaults, with `nprobe` in 1..nlist, and `refine` 0 if there are no dense rows
        certify : called with a reader of the finished files; the manifest stores what it returns. If it raises, nothing
            is published
        advance : called with the bytes of each part written

        Raises
        ------
        InvalidInput
            If there are no rows, ids repeat, an argument cannot be stored, or the path exists by now.
        VqdistillError
            If the disk refuses; nothing is left behind.
        """
        with self._all_or_nothing():
            self._runs.flush()
            if self.n == 0:
                raise InvalidInput("an index must have at least one row, got none")
            self._refuse_repeated_ids()
            segments = self._layout().segments()
            # Once before the long work too, so that an unusable argument costs nothing.
            blank = {kind: replace(segment, crc32=(0,) * segment.checksums) for kind, segment in segments.items()}
            self._manifest(plan, search, report, blank)
            segments = self._write_segments(segments, advance)
            if not self._keeps_runs:
                self._runs.remove()
            manifest = self._manifest(plan, search, report, segments)
            with IndexReader.open_files(self._temporary, manifest) as reader:
                fit, certificate = measure_fit(reader), None
                if certify is not None:
                    search, certificate = certify(reader)
            drift = None if fit is None else Drift(compiled=fit)
            manifest = self._manifest(plan, search, report, segments, certificate, drift)
            publish_manifest(self._ops, self._temporary, manifest)
            self._require_free_path()
            self._ops.rename(self._temporary, self._path)
            self._ops.sync_dir(self._path.parent)
            self._open = False
        return manifest

    def abort(self) -> None:
        """Remove all that was written; does nothing after `publish` or a failure."""
        if not self._open:
            return
        self._open = False
        self._ops.remove_tree(self._temporary)

    def __enter__(self) -> IndexWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    @contextlib.contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        if not self._open:
            raise InvalidInput(f"the writer of {self._path} is closed")
        try:
            yield
        except OSError as error:
            self.abort()
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY) and os.path.lexists(self._path):
                raise InvalidInput(f"output {self._path} must not exist, but it does") from None
            raise write_error(self._path, error) from error
        except BaseException:
            self.abort()
            raise

    def _require_free_path(self) -> None:
        if os.path.lexists(self._path):
            raise InvalidInput(f"output {self._path} must not exist, but it does")
        if not self._path.parent.is_dir():
            raise InvalidInput(f"output {self._path} must lie in a directory, but {self._path.parent} is none")

    def _refuse_repeated_ids(self) -> None:
        if self._ids == "rows":
            return
        of = self._runs.key_of if self._ids == "int64" else self._runs.text_of
        for first, second in self._runs.suspects():
            # Equal digests of different strings are possible, if only just.
            if (a := of(first)) == of(second):
                raise InvalidInput(f"ids must be unique, got {a!r} for rows {first} and {second}")

    def _layout(self) -> Layout:
        return layout_of(
            self._model, n=self.n, dense=self._dense, ids=self._ids, tables=self._tables, id_bytes=self._runs.text_bytes
        )

    def _manifest(
        self,
        plan: Mapping[str, Any],
        search: SearchPolicy,
        report: Mapping[str, Any],
        segments: Mapping[str, Segment],
        certificate: Certificate | None = None,
        drift: Drift | None = None,
    ) -> Manifest:
        """Build the manifest and read it back, so that nothing is published that a reader would refuse."""
        layout = self._layout()
        manifest = Manifest(
            generation=1,
            index_id=self._index_id,
            n=layout.n,
            d=layout.d,
            metric=self._model.metric,
            residual=self._model.residual,
            nlist=layout.nlist,
            m=layout.m,
            dsub=layout.dsub,
            codes=layout.codes,
            dense=layout.dense,
            tables=layout.tables,
            ids=layout.ids,
            plan=plan,
            search=search,
            report=report,
            segments=segments,
            model_id=self._model_id(),
            next_row=self._first_row + layout.n,
            drift=drift,
            learned=learned_shape(self._model),
            adapters={
                stage: AdapterShape(units=adapter.units, rank=adapter.rank)
                for stage, adapter in adapters_of(self._model).items()
            },
            certificate=certificate,
        )
        try:
            return read_back(manifest)
        except (TypeError, ValueError, RecursionError, CorruptIndex, InvalidInput) as error:
            raise InvalidInput(f"plan, search and report must fit a manifest, got: {error}") from None

    def _model_id(self) -> bytes:
        """Hash of all that rows are encoded and scored with, as it is stored."""
        digest = hashlib.blake2b(f"{self._model.metric.value} {self._model.residual}".encode(), digest_size=ID_BYTES)
        arrays, segments = arrays_of(self._model), self._layout().segments()
        for kind in sorted(arrays.keys() & segments.keys()):
            array = stored(arrays[kind], segments[kind])
            digest.update(f"{kind} {array.dtype.str} {array.shape}".encode())
            digest.update(array.tobytes())
        for stage, adapter in adapters_of(self._model).items():
            digest.update(f"{stage} {adapter.rank}".encode())
        return digest.digest()

    def _write_segments(self, segments: Mapping[str, Segment], advance: Callable[[int], None]) -> dict[str, Segment]:
        offsets = np.concatenate([[0], np.cumsum(self._runs.counts)])
        whole = {"list_offsets": offsets} | {
            name: stored(array, segments[name]) for name, array in arrays_of(self._model).items() if name in segments
        }
        written: dict[str, Segment] = {}
        for kind, segment in segments.items():
            if kind in ("id_keys", "id_order"):
                continue
            chunks = [whole[kind]] if kind in whole else self._chunks(kind)
            written[kind] = write_segment(self._ops, self._temporary, segment, self._index_id, chunks, advance)
        return written | write_id_table(
            self._ops, self._temporary, dict(segments) | written, self._index_id, self._memory_bytes
        )

    def _chunks(self, kind: str) -> Chunks:
        """Payload of a segment that has something of every row, a little at a time."""
        if kind == "codes":
            return packed(self._runs.merged("codes"))
        if kind == "ids_offsets":
            return self._id_offsets()
        if kind == "ids_bytes":
            return (np.frombuffer(text, np.uint8) for _, text in self._runs.merged_texts())
        return self._runs.merged("keys" if kind == "ids" else kind)

    def _id_offsets(self) -> Chunks:
        end = 0
        yield np.zeros(1, np.int64)
        for lengths, _ in self._runs.merged_texts():
            yield end + np.cumsum(lengths)
            end += int(lengths.sum())


def _one_of(name: str, value: str, options: tuple[str, ...]) -> str:
    if value not in options:
        raise InvalidInput(f"{name} must be one of {', '.join(options)}, got {value!r}")
    return value
