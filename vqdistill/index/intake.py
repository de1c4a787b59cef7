"""Rows on their way into runs: checked, and encoded as segments hold them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vqdistill.config import KSUB
from vqdistill.errors import InvalidInput
from vqdistill.index.contents import layout_of, require_array
from vqdistill.index.encodings import encode_dense, encode_int_ids, encode_text_id
from vqdistill.index.lookup import text_key
from vqdistill.index.runs import EncodedRows
from vqdistill.model.ivfpq import IvfPqModel
from vqdistill.types import Codes, F32Rows, require_finite


class RowIntake:
    """Turns coded rows into what runs keep of them; parameters as for `IndexWriter`."""

    def __init__(self, model: IvfPqModel, *, dense: str, ids: str, tables: str) -> None:
        self._model, self._dense, self._ids = model, dense, ids
        layout = layout_of(model, n=1, dense=dense, ids=ids, tables=tables).segments()
        self.widths = {"codes": model.m}
        """Bytes of a row in each fixed column, for `Runs`."""
        if dense != "none":
            self.widths["dense"] = layout["dense"].row_bytes
        if ids != "rows":
            self.widths["keys"] = 8

    def encode(self, ids: Sequence[Any] | npt.NDArray[Any] | None, codes: Codes, x: F32Rows, start: int) -> EncodedRows:
        """Check rows, and encode what belongs to them.

        Parameters
        ----------
        ids, codes, x : as for `IndexWriter.add`
        start : row number of the first, for messages

        Raises
        ------
        InvalidInput
            If shapes, dtypes or values do not fit.
        """
        self._require_rows(codes, x, start)
        keys, texts = self._encoded_ids(ids, len(x), start)
        dense = None if self._dense == "none" else encode_dense(x, self._dense, start)
        rows = None if dense is None else dense.view(np.uint8).reshape(len(x), -1)
        return EncodedRows(codes.lists.copy(), codes.codes, rows, keys, texts)

    def _require_rows(self, codes: Codes, x: F32Rows, start: int) -> None:
        d, m = self._model.d, self._model.m
        require_array("x", x, (len(x), d), np.float32)
        require_array("lists", codes.lists, (len(x),), np.int32)
        require_array("codes", codes.codes, (len(x), m), np.uint8)
        require_finite(x, "vectors", start)
        if len(x) and not (codes.lists.min() >= 0 and codes.lists.max() < self._model.nlist):
            span = f"{codes.lists.min()}..{codes.lists.max()}"
            raise InvalidInput(f"lists must be in [0, {self._model.nlist}), got {span}")
        if len(x) and codes.codes.max() >= KSUB:
            raise InvalidInput(f"codes must be in [0, {KSUB}), got {codes.codes.max()}")

    def _encoded_ids(
        self, ids: Sequence[Any] | npt.NDArray[Any] | None, count: int, start: int
    ) -> tuple[npt.NDArray[np.int64] | None, list[bytes] | None]:
        """Ids as integers, or as digests and texts."""
        if (ids is None) != (self._ids == "rows"):
            raise InvalidInput(f"ids must be {'None' if self._ids == 'rows' else self._ids}, got {type(ids).__name__}")
        if ids is None:
            return None, None
        if len(ids) != count:
            raise InvalidInput(f"ids must be one for each of {count} rows, got {len(ids)}")
        if self._ids == "int64":
            return encode_int_ids(ids), None
        texts = [encode_text_id(text, start + row) for row, text in enumerate(ids)]
        return np.frombuffer(b"".join(map(text_key, texts)), dtype="<i8"), texts
