"""How the rows of a finished index fit its model, measured on a sample of what it stores."""

from __future__ import annotations

import numpy as np

from vqdistill.config import BLOCK_ROWS
from vqdistill.index.drift import Fit, fit_from
from vqdistill.index.reader import IndexReader
from vqdistill.types import Codes

_SAMPLE = 4096
"""Rows whose error is measured, evenly spaced."""


def measure_fit(reader: IndexReader) -> Fit | None:
    """Return the fit of the first set of rows; None for an index without dense rows, which say what was coded."""
    manifest, rows = reader.manifest, reader.sets[0]
    if manifest.dense == "none":
        return None
    sample = np.unique(np.linspace(0, rows.n - 1, min(rows.n, _SAMPLE)).astype(np.int64))
    pairs = rows.arrays["codes"][sample // BLOCK_ROWS, :, sample % BLOCK_ROWS].reshape(len(sample), -1)
    codes = np.stack([pairs & 15, pairs >> 4], axis=2).reshape(len(sample), manifest.m)
    lists = (np.searchsorted(rows.list_offsets, sample, side="right") - 1).astype(np.int32)
    decoded = reader.model.decode(Codes(lists, codes))
    return fit_from(np.diff(rows.list_offsets), reader.dense_rows(sample), decoded, manifest.generation)
