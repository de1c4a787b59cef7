"""How added rows fit the model, measured in any blocks, kept in the manifest, and when it is worth a warning."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import vqdistill as vqd
from tests.index.support import make_sample, write_sample
from vqdistill.errors import CorruptIndex
from vqdistill.index.drift import FEWEST_ROWS, MAX_ADDITIONS, Drift, Fit, FitMeter
from vqdistill.index.fields import Fields
from vqdistill.index.verify import verify
from vqdistill.types import Codes

RNG = np.random.default_rng(0)


def fit(rows: int = 5000, error: float = 0.2, imbalance: float = 1.3, generation: int = 1) -> Fit:
    return Fit(generation=generation, rows=rows, error=error, imbalance=imbalance)


@pytest.mark.parametrize("block", [1, 7, 16, 100])
def test_a_fit_does_not_depend_on_blocks(block: int) -> None:
    x = RNG.standard_normal((100, 6)).astype(np.float32)
    lists = RNG.integers(0, 4, 100).astype(np.int32)
    meter = FitMeter(4)
    for begin in range(0, 100, block):
        part = slice(begin, begin + block)
        codes = Codes(lists[part], np.zeros((len(lists[part]), 2), np.uint8))
        meter.add(codes, x[part], begin, lambda codes: np.zeros((len(codes.lists), 6), np.float32))
    got = meter.fit(3)
    counts = np.bincount(lists)
    assert got is not None and (got.generation, got.rows, got.error) == (3, 100, 1.0)
    assert got.imbalance == round(4 * (counts * (counts - 1)).sum() / (100 * 99), 4)
    assert FitMeter(4).fit(1) is None


def test_warnings() -> None:
    drift = Drift(compiled=fit())
    assert drift.warnings == [] and drift.total is None
    assert drift.with_added(fit()).warnings == []
    assert drift.with_added(fit(rows=FEWEST_ROWS - 1, error=9.0)).warnings == []
    (found,) = drift.with_added(fit(error=0.3)).warnings
    assert found.startswith("the codes of 5000 added rows have an error of 0.300, those compiled 0.200")
    assert "--warm-start" in found
    (found,) = drift.with_added(fit(imbalance=2.5)).warnings
    assert "imbalance 2.50 against 1.30" in found


def test_many_additions_are_summed_up() -> None:
    drift = Drift(compiled=fit())
    for number in range(MAX_ADDITIONS + 10):
        drift = drift.with_added(fit(rows=10, error=number, generation=number + 2))
    assert len(drift.added) == MAX_ADDITIONS and drift.total is not None
    assert drift.total.rows == 10 * (MAX_ADDITIONS + 10)
    assert drift.total.error == pytest.approx(np.arange(MAX_ADDITIONS + 10).mean())
    assert Drift.parse(Fields(drift.to_json(), "m")) == drift


def test_hostile_drift() -> None:
    doc = Drift(compiled=fit(), added=(fit(),)).to_json()
    for wrong in ({**doc, "more": 1}, {"added": []}, doc | {"added": [{}]}, doc | {"compiled": None}):
        with pytest.raises(CorruptIndex):
            Drift.parse(Fields(wrong, "m"))


def test_an_index_that_drifts(tmp_path: Path) -> None:
    """Rows far from those of the compile are told apart."""
    write_sample(tmp_path / "x.vqd", make_sample(n=400, ids="int64", additive=True))
    searcher = vqd.open(tmp_path / "x.vqd")
    compiled = searcher.reader.manifest.drift
    assert compiled is not None and compiled.compiled.rows == 400
    searcher.add(RNG.standard_normal((1200, 5)) * 50, np.arange(1200))
    drift = searcher.reader.manifest.drift
    assert drift is not None and drift.total is not None
    assert (drift.compiled, drift.total.rows) == (compiled.compiled, 1200)
    assert verify(tmp_path / "x.vqd") == []
    searcher.compact()
    assert searcher.reader.manifest.drift == drift
