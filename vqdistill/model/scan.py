"""A native engine over a model and codes in memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from vqdistill.kernels import Engine, pack_codes, scan_order
from vqdistill.model.ivfpq import IvfPqModel
from vqdistill.types import Codes, Metric


def make_engine(
    model: IvfPqModel, list_offsets: npt.NDArray[np.int64], packed: npt.NDArray[np.uint8], **dense: Any
) -> Engine:
    """Return an engine that searches the packed codes; it shares the memory of all arrays.

    Parameters
    ----------
    list_offsets : (nlist + 1,) int64, first position of each list and the number of rows
    packed : packed codes, see `kernels.pack_codes` and `kernels.scan_order`
    dense : `dense_fd`, `dense_offset` and `dense_dtype` of the engine; without them it ranks by code only
    """
    return Engine(
        metric="l2" if model.metric is Metric.L2 else "ip",
        residual=model.residual,
        list_offsets=list_offsets,
        router=model.router,
        coarse=model.coarse,
        mean=model.mean,
        rotation=model.rotation,
        codewords=model.codewords,
        packed=packed,
        query_adapter=None if model.query_adapter is None else model.query_adapter.for_engine(),
        verify_adapter=None if model.verify_adapter is None else model.verify_adapter.for_engine(),
        **dense,
    )


def engine_over(model: IvfPqModel, codes: Codes) -> tuple[Engine, npt.NDArray[np.int64]]:
    """Return an engine over the codes of rows, put into list order, and the row (n,) at each of its positions."""
    order = np.argsort(codes.lists, kind="stable")
    offsets = np.searchsorted(codes.lists[order], np.arange(model.nlist + 1)).astype(np.int64)
    packed = scan_order(pack_codes(np.ascontiguousarray(codes.codes[order])))
    return make_engine(model, offsets, packed), order
