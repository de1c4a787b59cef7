"""Who cheats is caught and named; who does not is left alone."""

from __future__ import annotations

import numpy as np
import pytest

from tests.bench.support import TEST, Exact
from vqdistill.bench.datasets import Dataset
from vqdistill.bench.measure import measure
from vqdistill.bench.referee import check
from vqdistill.bench.store import Run
from vqdistill.bench.tuning import Point


def _run(dataset: Dataset, lie: str) -> Run:
    index = Exact(np.asarray(dataset.rows("docs")), lie)
    operations, yardstick = measure("liar", index, dataset, [Point(0.9, {"effort": 2}, 1.0)], 1, deep=False)
    assert len(yardstick) == 1
    return Run({"system": "liar"}, operations)


@pytest.mark.parametrize(
    ("lie", "kind", "text"),
    [
        ("unasked", "unasked", "liar returned 15 neighbours of each query, it was asked for 10"),
        ("unknown", "unasked", "liar returned ids beyond the 600 documents"),
        ("duplicates", "duplicates", "liar returned a document twice"),
        ("padding", "padding", "liar passed -1 off as a result"),
        ("scores", "scores", "liar returned scores that are not the vectors' scores"),
    ],
)
def test_a_cheating_system_is_refused_and_named(dataset: Dataset, lie: str, kind: str, text: str) -> None:
    run = _run(dataset, lie)
    assert run.refused and any(text in reason for reason in run.refused)
    found = {one["kind"]: one for one in run.operations[0].facts["findings"]}
    assert found[kind]["count"] == TEST


def test_an_honest_system_is_not(dataset: Dataset) -> None:
    run = _run(dataset, "")
    assert run.operations[0].facts["findings"] == [] and run.refused == []


def test_padding_at_the_end_is_named_and_counts_as_missing(dataset: Dataset) -> None:
    truth = dataset.truth("test")
    scores, ids = truth.scores[:, :10].copy(), truth.ids[:, :10].copy()
    scores[3, 9], ids[3, 9] = -np.inf, -1
    checked = check("a", scores, ids, dataset.rows("test"), dataset.rows("docs"), 10, False)
    assert [(one.kind, one.count, one.refused) for one in checked.findings] == [("padding", 1, False)]
    assert "first for query 3" in checked.findings[0].text
    assert checked.scores[3, 9] == -np.inf and checked.ids[3, 9] == -1


def test_a_wrong_shape_is_no_result(dataset: Dataset) -> None:
    few = np.zeros((2, 10), np.int64)
    checked = check("a", few.astype(np.float32), few, dataset.rows("test"), dataset.rows("docs"), 10, False)
    assert checked.findings[0].kind == "shape" and (checked.ids == -1).all()


def test_a_worse_document_before_a_better_one(dataset: Dataset) -> None:
    truth = dataset.truth("test")
    scores, ids = truth.scores[:, 9::-1].copy(), truth.ids[:, 9::-1].copy()
    checked = check("a", scores, ids, dataset.rows("test"), dataset.rows("docs"), 10, False)
    assert [one.kind for one in checked.findings] == ["order"]
