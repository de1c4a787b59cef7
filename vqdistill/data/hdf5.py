"""Opener of HDF5 files, those of ann-benchmarks and VIBE among them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from vqdistill.data.tables import ELEMENT_BYTES, BlockTable, Table, check_table
from vqdistill.errors import InvalidInput
from vqdistill.types import Metric

_METRICS = {
    "angular": Metric.COSINE,
    "cosine": Metric.COSINE,
    "normalized": Metric.COSINE,
    "euclidean": Metric.L2,
    "l2": Metric.L2,
    "ip": Metric.IP,
    "dot": Metric.IP,
}
_UNCHUNKED_BYTES = 64 << 10  # what is read around one row of a contiguous dataset
_MAX_BLOCK_BYTES = 64 << 20  # chunks taller than this are decompressed once for each part of them
_PIECE_ROWS = 65536


class Hdf5Container:
    """An open HDF5 file.

    The attribute `distance` names the metric. The attribute `scale`, of a dataset or else of the file, is the factor
    that turns stored integers into values.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self.shapes: dict[str, tuple[int, ...]] = {}
        with _reading(f"{path} is not a readable HDF5 file"):
            self._file = h5py.File(path, "r")
            self._file.visititems(self._note)

    @property
    def metric(self) -> Metric | None:
        """What the attribute `distance` says; None without one.

        Raises
        ------
        InvalidInput
            If it names a distance that is not supported.
        """
        said = self._attribute(self._file, "distance")
        if said is None:
            return None
        text = said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)
        if text.lower() not in _METRICS:
            raise InvalidInput(f"{self.name} has distance {text!r}, wanted one of {', '.join(_METRICS)}")
        return _METRICS[text.lower()]

    def table(self, key: str) -> Table:
        """See Container."""
        dataset = self._file[key]
        scale = self._attribute(dataset, "scale")
        return _Hdf5Table(
            f"{self.name}:{key}", dataset, self._attribute(self._file, "scale") if scale is None else scale
        )

    def pieces(self, key: str) -> Iterator[npt.NDArray[Any]]:
        """See Container."""
        with _reading(f"{self.name}:{key} cannot be read"):
            dataset = self._file[key]
            text = h5py.check_string_dtype(dataset.dtype) is not None
            for start in range(0, dataset.shape[0], _PIECE_ROWS) if dataset.shape else ():
                yield (dataset.asstr() if text else dataset)[start : start + _PIECE_ROWS]

    def _note(self, key: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            self.shapes[key] = item.shape or ()

    def _attribute(self, item: Any, name: str) -> Any:
        with _reading(f"{self.name} has an attribute {name!r} that cannot be read"):
            return item.attrs.get(name)


class _Hdf5Table(BlockTable):
    """Rows of a dataset, read in spans that are whole chunks in height, so that no chunk is decompressed twice."""

    def __init__(self, name: str, dataset: Any, scale: Any) -> None:
        super().__init__()
        self.name, self.dtype = name, dataset.dtype.name
        check_table(name, dataset.shape or (), self.dtype)
        self.n, self.dim = dataset.shape
        self.scale = _checked_scale(name, scale) if dataset.dtype.kind in "iu" else None
        self._dataset = dataset
        row_bytes = self.dim * ELEMENT_BYTES[self.dtype]
        chunked = dataset.chunks[0] if dataset.chunks else _UNCHUNKED_BYTES // row_bytes
        self.granule = max(1, min(chunked, self.n, _MAX_BLOCK_BYTES // row_bytes))

    def _raw(self, start: int, stop: int) -> npt.NDArray[Any]:
        with _reading(f"{self.name} is damaged near row {start}"):
            return np.asarray(self._dataset[start:stop])


@contextmanager
def _reading(complaint: str) -> Iterator[None]:
    """Turn whatever h5py raises for a damaged file into our error."""
    try:
        yield
    except InvalidInput:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise InvalidInput(f"{complaint}: {(str(error).splitlines() or [''])[0]}") from None


def _checked_scale(name: str, scale: Any) -> float | None:
    if scale is None:
        return None
    value = np.asarray(scale)
    if value.size != 1 or value.dtype.kind not in "fiu" or not np.isfinite(value).all() or float(value.flat[0]) <= 0:
        raise InvalidInput(f"{name} has attribute scale {scale!r}, wanted one positive number")
    return float(value.flat[0])
