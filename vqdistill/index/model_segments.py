"""ModelSegments: what the model of an index is made of, in memory, or read from disk when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vqdistill.errors import CorruptIndex, InvalidInput
from vqdistill.index.byte_rows import from_bytes
from vqdistill.index.checks import checksum_problems
from vqdistill.index.files import as_bytes, read_array
from vqdistill.index.manifest import Manifest
from vqdistill.index.spec import Segment
from vqdistill.kernels import scan_order
from vqdistill.model.adapter import QueryAdapter
from vqdistill.types import F32Rows, Metric

if TYPE_CHECKING:
    from vqdistill.model.ivfpq import IvfPqModel


class ModelSegments:
    """Segments of a generation, of which those of the model are given meaning.

    Parameters
    ----------
    path : directory of the index
    manifest : of the generation
    fds : descriptors of its segments by kind, open as long as this is used
    arrays : resident segments by kind
    """

    def __init__(
        self, path: Path, manifest: Manifest, fds: Mapping[str, int], arrays: Mapping[str, npt.NDArray[Any]]
    ) -> None:
        self.arrays = arrays
        self._path, self._manifest, self._fds = path, manifest, fds

    def load(self) -> IvfPqModel:
        """Return the model, with what encodes rows, which is not resident."""
        # Here, because its encoder loads Numba, which opening and searching must not.
        from vqdistill.model.ivfpq import IvfPqModel
        from vqdistill.model.learned import LearnQueries
        from vqdistill.model.space import Space

        manifest, space, learned = self._manifest, None, None
        if "doc_space" in manifest.segments:
            try:
                space = Space.of_forward(self.payload("doc_space"))
            except InvalidInput as error:
                raise CorruptIndex(f"{manifest.segments['doc_space'].file}: {error}") from None
        shape = manifest.learned
        if shape is not None and shape.queries:
            queries = self.payload("learn_queries").astype(np.float32)
            learned = LearnQueries(queries, self.payload("learn_scores"), shape.codes)
        return IvfPqModel(
            metric=manifest.metric,
            residual=manifest.residual,
            mean=self.arrays["mean"],
            coarse=self.table("coarse"),
            router=self.table("router"),
            rotation=self.rotation,
            codewords=self.table("codewords"),
            doc_codewords=self.payload("doc_codewords"),
            space=space,
            query_adapter=self.adapter("query"),
            verify_adapter=self.adapter("verify"),
            anchors=self.payload("anchors") if shape is not None and shape.anchors else None,
            learned=learned,
        )

    def adapter(self, stage: str) -> QueryAdapter | None:
        """The adapter of a stage, "query" or "verify"; None if there is none."""
        arrays = self.adapter_arrays(stage)
        if arrays is None:
            return None
        down, bias, up, rank, unit = arrays
        down, up = (matrix.astype(np.float32, copy=False) for matrix in (down, up))
        return QueryAdapter(down=down, bias=bias, up=up, rank=rank, unit=unit)

    def adapter_arrays(self, stage: str) -> tuple[Any, Any, Any, int, bool] | None:
        """The adapter of a stage as the engine takes it."""
        manifest = self._manifest
        if stage not in manifest.adapters:
            return None
        down, bias, up = (self.arrays[f"{stage}_{part}"] for part in ("down", "bias", "up"))
        return down, bias, up, manifest.adapters[stage].rank, manifest.metric is Metric.COSINE

    def table(self, kind: str) -> F32Rows:
        """Router, coarse or codewords as float32."""
        array = self.arrays[kind]
        return from_bytes(array) if array.dtype == np.uint8 else array.astype(np.float32, copy=False)

    @property
    def rotation(self) -> F32Rows:
        """Of product codes, (m * dsub, d); (0, d) of additive ones."""
        return self.arrays.get("rotation", np.empty((0, self._manifest.d), np.float32))

    def payload(self, kind: str) -> npt.NDArray[Any]:
        """Read a segment whole."""
        return load_segment(self._path, self._manifest.segments[kind], self._fds[kind])


def load_segment(directory: Path, segment: Segment, fd: int) -> npt.NDArray[Any]:
    """Read a segment whole, codes in the order in which the scan reads them (see `kernels.scan_order`).

    Everything but the codes is small enough to be checked on the way.

    Raises
    ------
    CorruptIndex
        If its bytes are not those that were written.
    VqdistillError
        If the disk refuses.
    """
    array = read_array(fd, segment, directory / segment.file)
    if segment.kind == "codes":
        return scan_order(array)
    for problem in checksum_problems(segment, as_bytes(array)):
        raise CorruptIndex(problem)
    return array
