"""What an index holds of a model: its arrays by the kinds of their segments, and the layout that they lead to."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from vqdistill.errors import InvalidInput
from vqdistill.index.byte_rows import to_bytes
from vqdistill.index.manifest_parts import LearnedShape
from vqdistill.index.spec import ADAPTERS, Layout, Segment
from vqdistill.model.adapter import QueryAdapter
from vqdistill.model.ivfpq import IvfPqModel

_ADAPTER_TABLES = ("_down", "_up")
_TABLE_ARRAYS = ("router", "codewords", "coarse", *_ADAPTER_TABLES)
"""Ends of the names of what is stored as the writer's `tables` says."""
_MODEL_ARRAYS = ("router", "rotation", "codewords", "mean", "coarse", "doc_codewords", "doc_space")
_ADAPTER_PARTS = ("down", "bias", "up")


def layout_of(model: IvfPqModel, *, n: int, dense: str, ids: str, tables: str = "f32", id_bytes: int = 0) -> Layout:
    """Layout of the segments that hold a model and n of its rows."""
    shape = learned_shape(model)
    more: dict[str, Any] = {} if shape is None else shape.layout
    more |= {f"{stage}_units": adapter.units for stage, adapter in adapters_of(model).items()}
    return Layout(
        n=n,
        d=model.d,
        nlist=model.nlist,
        m=model.m,
        dsub=model.dsub,
        codes="additive" if model.additive else "pq",
        dense=dense,
        tables=tables,
        ids=ids,
        id_bytes=id_bytes,
        **more,
    )


def learned_shape(model: IvfPqModel) -> LearnedShape | None:
    """What an index keeps of a model for rows that are added later; None = nothing."""
    learned, anchors = model.learned, model.anchors is not None
    if learned is None:
        return LearnedShape(queries=0, depth=0, codes=False, anchors=True) if anchors else None
    queries, depth = learned.scores.shape
    return LearnedShape(queries=queries, depth=depth, codes=learned.codes, anchors=anchors)


def adapters_of(model: IvfPqModel) -> dict[str, QueryAdapter]:
    """Adapters of a model by their stages, names of ADAPTERS."""
    found = {stage: getattr(model, f"{stage}_adapter") for stage in ADAPTERS}
    return {stage: adapter for stage, adapter in found.items() if adapter is not None}


def arrays_of(model: IvfPqModel) -> dict[str, npt.NDArray[np.float32]]:
    """All arrays of a model by the kinds of their segments."""
    arrays = {name: getattr(model, name) for name in _MODEL_ARRAYS}
    for stage, adapter in adapters_of(model).items():
        arrays |= {f"{stage}_{part}": getattr(adapter, part) for part in _ADAPTER_PARTS}
    if model.learned is not None:
        arrays |= {"learn_queries": model.learned.queries, "learn_scores": model.learned.scores}
    return arrays if model.anchors is None else arrays | {"anchors": model.anchors}


def stored(array: npt.NDArray[np.float32], segment: Segment) -> npt.NDArray[Any]:
    """An array of the model as its segment holds it."""
    return to_bytes(array) if segment.dtype == "u1" else array.astype(segment.numpy_dtype, copy=False)


def require_model(model: IvfPqModel, tables: str) -> None:
    """Require a model that a layout with such tables can hold.

    Raises
    ------
    InvalidInput
        If it is none.
    """
    if tables != "f32" and not model.additive:
        raise InvalidInput(f"tables must be f32 for product codes, got {tables!r}")
    wanted = layout_of(model, n=1, dense="none", ids="rows").arrays
    for name, array in arrays_of(model).items():
        if name not in wanted:
            continue
        require_array(f"model {name}", array, wanted[name][1], np.float32)
        if not np.isfinite(array).all():
            raise InvalidInput(f"model {name} must be finite, got NaN or infinity")
        ends = _TABLE_ARRAYS if tables == "f16" else _ADAPTER_TABLES if tables == "i8" else ()
        halves = name.endswith(("learn_queries", *ends))
        if halves and np.abs(array).max(initial=0) > np.finfo(np.float16).max:
            raise InvalidInput(f"model {name} must fit float16, got {np.abs(array).max():g}; store tables as f32")


def require_array(name: str, array: Any, shape: tuple[int, ...], dtype: Any) -> None:
    """Require an array of this shape and element type."""
    got = f"{getattr(array, 'shape', type(array).__name__)} {getattr(array, 'dtype', '')}".rstrip()
    if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype != dtype:
        raise InvalidInput(f"{name} must be {shape} {np.dtype(dtype).name}, got {got}")
