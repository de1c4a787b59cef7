"""All learned parts of an index as named arrays, for engines that nobody here knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vqdistill.errors import needed_by
from vqdistill.index.reader import IndexReader
from vqdistill.interchange.rows import LiveRows
from vqdistill.interchange.whole import whole_file

_TABLES = ("mean", "coarse", "router", "rotation", "codewords", "doc_codewords")


def to_arrays(reader: IndexReader, rows: bool = True) -> dict[str, npt.NDArray[Any]]:
    """Return the learned parts of an open index, and its rows unless `rows` is False.

    Names, shapes and meaning are in docs/EXPORT.md; tables are float32 however the index stores them. Deleted rows are
    left out.
    """
    model = reader.model
    arrays: dict[str, npt.NDArray[Any]] = {name: getattr(model, name) for name in _TABLES if getattr(model, name).size}
    if model.additive:
        arrays["doc_space"] = model.doc_space
    if model.anchors is not None:
        arrays["anchors"] = model.anchors
    for stage, adapter in (("query", model.query_adapter), ("verify", model.verify_adapter)):
        if adapter is not None:
            arrays |= {f"{stage}_{part}": getattr(adapter, part) for part in ("down", "bias", "up")}
    return arrays | _rows(reader) if rows else arrays


def about(reader: IndexReader) -> dict[str, str]:
    """What the arrays do not say of themselves, as text by name."""
    manifest = reader.manifest
    facts = {
        "format": "vqdistill parts 1",
        "metric": manifest.metric.value,
        "codes": manifest.codes,
        "residual": str(manifest.residual).lower(),
        "nprobe": str(manifest.search.nprobe),
        "refine": str(manifest.search.refine),
    }
    return facts | {f"{stage}_rank": str(adapter.rank) for stage, adapter in manifest.adapters.items()}


def write_npz(reader: IndexReader, out: Path, rows: bool = True) -> None:
    """Write a file of `numpy.load`; what the arrays do not say is in the array `about`, lines of "name value".

    Raises
    ------
    InvalidInput, VqdistillError
        As `whole_file`.
    """
    lines = "\n".join(f"{name} {value}" for name, value in about(reader).items())
    with whole_file(out) as part, part.open("wb") as file:
        arrays: dict[str, Any] = {"about": np.array(lines)} | to_arrays(reader, rows)
        np.savez(file, **arrays)


def write_safetensors(reader: IndexReader, out: Path, rows: bool = True) -> None:
    """Write a file of safetensors, whose metadata is what the arrays do not say; ids that are text become bytes.

    Raises
    ------
    MissingDependency
        If safetensors is not installed.
    InvalidInput, VqdistillError
        As `whole_file`.
    """
    with needed_by("the target safetensors", "safetensors", extra="safetensors"):
        from safetensors.numpy import save_file
    arrays = {name: np.ascontiguousarray(array) for name, array in to_arrays(reader, rows).items()}
    with whole_file(out) as part:
        save_file(arrays, str(part), metadata=about(reader))


def _rows(reader: IndexReader) -> dict[str, npt.NDArray[Any]]:
    live = LiveRows(reader)
    offsets = np.concatenate([[0], np.cumsum(live.counts)])
    codes = np.empty((live.n, reader.manifest.m // 2), np.uint8)
    rows = np.empty(live.n, np.int64)
    texts: list[bytes] = []
    ids = np.empty(live.n, np.int64)
    begin = 0
    for chunk in live.chunks():
        part = slice(begin, begin + len(chunk.positions))
        codes[part], rows[part] = chunk.pairs, reader.rows_of(chunk.positions)
        found = reader.ids_of(chunk.positions)
        if reader.manifest.ids == "str":
            texts += [text.encode() for text in found.tolist()]
        else:
            ids[part] = found
        begin = part.stop
    arrays: dict[str, npt.NDArray[Any]] = {"list_offsets": offsets, "codes": codes, "rows": rows}
    if reader.manifest.ids != "str":
        return arrays | {"ids": ids}
    ends = np.concatenate([[0], np.cumsum([len(text) for text in texts])])
    return arrays | {"ids_offsets": ends, "ids_bytes": np.frombuffer(b"".join(texts), np.uint8)}
