"""Indexes in ScaNN: `load_searcher` opens them, and by codes alone and with vectors they find as much as ours."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vqdistill as vqd
from tests.interchange.support import INTEGER_IDS, QUERIES, ROWS, TEXT_IDS, make_index, recall
from tests.searching import prepared
from vqdistill.errors import InvalidInput, MissingDependency

K, NPROBE, REFINE = 10, 12, 50
"""All lists, which ScaNN visits in another order."""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # load_searcher leaves a file open
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize(("metric", "ids"), [("ip", INTEGER_IDS), ("cosine", TEXT_IDS), ("l2", INTEGER_IDS)])
def test_scann_finds_as_much(metric: str, ids: Any, tmp_path: Path) -> None:
    scann = pytest.importorskip("scann", reason="scann-core: pip install 'vqdistill[scann]'")
    searcher = make_index(tmp_path / "x.vqd", metric, ids=ids)
    searcher.delete(list(ids[:1]))
    report = vqd.export_index(tmp_path / "x.vqd", tmp_path / "x", to="scann")
    assert report["rows"] == len(ROWS) - 1
    theirs = scann.scann_ops_pybind.load_searcher(str(tmp_path / "x"))
    queries = np.ascontiguousarray(prepared(metric, QUERIES) @ np.load(tmp_path / "x" / "rotation.npy").T)
    for candidates in (K, REFINE):
        found, scores = theirs.search_batched(
            queries, leaves_to_search=NPROBE, pre_reorder_num_neighbors=candidates, final_num_neighbors=K
        )
        ours = searcher.search(QUERIES, K, nprobe=NPROBE, refine=candidates)
        # Of 370 neighbours; its tables are rounded more coarsely than ours.
        assert recall(found, metric, ids) >= recall(ours.ids.tolist(), metric, ids) - 0.02
    wanted = -ours.scores if metric == "l2" else ours.scores
    same = np.asarray(found) == ours.ids
    assert same.mean() > 0.9
    np.testing.assert_allclose(np.asarray(scores)[same], wanted[same], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"additive": True}, "ScaNN has product codes only, got an index of additive ones"),
        ({"dense": "none"}, "ScaNN verifies with vectors, got an index with dense=none"),
        ({"units": 4}, "ScaNN has no transforms of queries, got an index with adapters"),
    ],
)
def test_what_scann_has_no_words_for_is_refused(options: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    pytest.importorskip("scann", reason="scann-core: pip install 'vqdistill[scann]'")
    make_index(tmp_path / "x.vqd", "ip", **options)
    with pytest.raises(InvalidInput, match=sentence):
        vqd.export_index(tmp_path / "x.vqd", tmp_path / "x", to="scann")
    assert [path.name for path in tmp_path.iterdir()] == ["x.vqd"]


def test_without_scann_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "scann" or name.endswith("scann_assets")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "scann", None)
    make_index(tmp_path / "x.vqd")
    with pytest.raises(MissingDependency, match=r"pip install 'vqdistill\[scann\]'"):
        vqd.export_index(tmp_path / "x.vqd", tmp_path / "x", to="scann")
