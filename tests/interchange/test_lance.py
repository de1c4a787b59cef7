"""Indexes in Lance: a table that LanceDB opens finds as much as ours, with our centroids and our codebook."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vqdistill as vqd
from tests.interchange.support import INTEGER_IDS, QUERIES, ROWS, TEXT_IDS, make_index, recall
from vqdistill.errors import InvalidInput, MissingDependency

K, NPROBE, REFINE = 10, 4, 50


@pytest.mark.parametrize(("metric", "ids"), [("ip", INTEGER_IDS), ("cosine", TEXT_IDS), ("l2", INTEGER_IDS)])
def test_lancedb_finds_as_much(metric: str, ids: Any, tmp_path: Path) -> None:
    lancedb = pytest.importorskip("lancedb", reason="lancedb: pip install lancedb 'vqdistill[lance]'")
    pytest.importorskip("lance", reason="pylance: pip install 'vqdistill[lance]'")
    searcher = make_index(tmp_path / "x.vqd", metric, dense="f16", ids=ids)
    searcher.delete(list(ids[:1]))
    report = vqd.export_index(tmp_path / "x.vqd", tmp_path / "x", to="lance")
    assert report["rows"] == len(ROWS) - 1
    table = lancedb.connect(tmp_path / "x").open_table("rows")
    rotation = np.load(tmp_path / "x" / "rotation.npy")
    kind = {"ip": "dot"}.get(metric, metric)
    found = []
    for query in QUERIES:
        asked = table.search(rotation @ query).distance_type(kind).nprobes(NPROBE).refine_factor(REFINE // K).limit(K)
        found.append([hit["id"] for hit in asked.to_list()])
    ours = searcher.search(QUERIES, K, nprobe=NPROBE, refine=REFINE).ids.tolist()
    assert recall(found, metric, ids) >= recall(ours, metric, ids) - 0.01 > 0.8


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"additive": True}, "Lance has product codes only, got an index of additive ones"),
        ({"dense": "none"}, "Lance codes rows from their vectors, got an index with dense=none"),
        ({"units": 4}, "Lance has no transforms of queries, got an index with adapters"),
    ],
)
def test_what_lance_has_no_words_for_is_refused(options: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    pytest.importorskip("lance", reason="pylance: pip install 'vqdistill[lance]'")
    make_index(tmp_path / "x.vqd", "ip", **options)
    with pytest.raises(InvalidInput, match=sentence):
        vqd.export_index(tmp_path / "x.vqd", tmp_path / "x", to="lance")
    assert [path.name for path in tmp_path.iterdir()] == ["x.vqd"]


def test_without_lance_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "lance", None)
    monkeypatch.delitem(sys.modules, "vqdistill.interchange.lance_dataset", raising=False)
    make_index(tmp_path / "x.vqd")
    with pytest.raises(MissingDependency, match=r"pip install 'vqdistill\[lance\]'"):
        vqd.export_index(tmp_path / "x.vqd", tmp_path / "x", to="lance")
