"""What training leaves, and all that rows are encoded with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from vqdistill.compiler.plan import CompilePlan
from vqdistill.index.policy import SearchPolicy
from vqdistill.model.ivfpq import IvfPqModel
from vqdistill.types import Block, Codes, F32Rows


@dataclass(frozen=True, kw_only=True)
class Trained:
    """All that the rows are encoded and an index is published with."""

    plan: CompilePlan
    """Settled: without room for adapters that were refused."""
    model: IvfPqModel
    report: dict[str, Any]
    """JSON object: what each stage brought."""
    search: SearchPolicy
    """Calibrated defaults."""
    held_out: F32Rows | None = None
    """(t, d) queries that decided in training, prepared, as they come; None without training"""
    reserved: F32Rows | None = None
    """(r, d) queries that nothing has seen, likewise"""
    pseudo: bool = False
    """Whether both were made from the corpus."""
    codes: Codes | None = None
    """Of all rows, where training has coded them already."""

    def codes_of(self, block: Block) -> Codes:
        """Codes of a block of the rows: those that training has left, or the same made anew."""
        end = block.start + len(block.rows)
        if self.codes is not None:
            return Codes(self.codes.lists[block.start : end], self.codes.codes[block.start : end])
        rows, model = np.arange(block.start, end), self.model
        terms, list_terms = (None if known is None else known.take(rows) for known in (model.terms, model.list_terms))
        return model.encode(block.rows, terms, list_terms)
