"""Named arrays: they say all that a search needs, in the words of docs/EXPORT.md."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import vqdistill as vqd
from tests.interchange.support import INTEGER_IDS, QUERIES, ROWS, TEXT_IDS, make_index


def scores_of(parts: Any, metric: str, residual: bool, q: Any) -> Any:
    """Score of every row by its code, from the arrays and what is written of them."""
    words, pairs = parts["codewords"].astype(np.float64), parts["codes"]
    m = len(words)
    codes = np.stack([pairs & 15, pairs >> 4], axis=2).reshape(len(pairs), m)
    v = q - parts["mean"] if metric == "l2" else q
    queries = np.tile(v, (m, 1)) if "rotation" not in parts else (parts["rotation"] @ v).reshape(m, -1)
    lut = np.einsum("jt,jkt->jk", queries, words)
    base: Any = parts["mean"] @ q
    if metric == "l2":
        lut, base = 2 * lut - (words**2).sum(axis=2), -(v @ v)
    elif residual:
        base = np.repeat(parts["coarse"] @ q, np.diff(parts["list_offsets"]))
    return base + lut[np.arange(m), codes].sum(axis=1)


@pytest.mark.parametrize(("metric", "additive"), [("ip", False), ("cosine", True), ("l2", False)])
def test_the_arrays_score_rows_as_the_index_does(metric: str, additive: bool, tmp_path: Path) -> None:
    searcher = make_index(tmp_path / "x.vqd", metric, additive=additive)
    searcher.delete(INTEGER_IDS[:50])
    vqd.export_index(tmp_path / "x.vqd", tmp_path / "x.npz", to="numpy")
    with np.load(tmp_path / "x.npz") as file:
        parts = dict(file)
    about = dict(line.split(" ", 1) for line in str(parts["about"]).splitlines())
    assert about == {
        "format": "vqdistill parts 1",
        "metric": metric,
        "codes": "additive" if additive else "pq",
        "residual": str(additive).lower(),
        "nprobe": "3",
        "refine": "150",
    }
    hits = searcher.search(QUERIES, 5, nprobe=searcher.reader.manifest.nlist, refine=0)
    queries = QUERIES / np.linalg.norm(QUERIES, axis=1, keepdims=True) if metric == "cosine" else QUERIES
    for q, wanted in zip(queries, hits.scores, strict=True):
        scores = scores_of(parts, metric, additive, q)
        np.testing.assert_allclose(np.sort(scores)[::-1][:5], wanted, rtol=1e-4, atol=1e-3)
    assert not np.isin(INTEGER_IDS[:50], parts["ids"]).any() and len(parts["ids"]) == len(ROWS) - 50
    assert (INTEGER_IDS[parts["rows"]] == parts["ids"]).all()


def test_safetensors_has_the_same_and_text_ids_as_bytes(tmp_path: Path) -> None:
    make_index(tmp_path / "x.vqd", "cosine", additive=True, ids=TEXT_IDS, units=4, linear=False)
    for target in ("numpy", "safetensors"):
        vqd.export_index(tmp_path / "x.vqd", tmp_path / target, to=target)
    with np.load(tmp_path / "numpy") as file:
        wanted = {name: file[name] for name in file.files if name != "about"}
    found = load_file(tmp_path / "safetensors")
    assert found.keys() == wanted.keys() >= {"query_down", "verify_up", "doc_space", "ids_bytes"}
    assert all((found[name] == wanted[name]).all() and found[name].dtype == wanted[name].dtype for name in found)
    data = found["ids_bytes"].tobytes()
    ends = found["ids_offsets"].tolist()
    assert [data[a:b].decode() for a, b in pairwise(ends)] == [TEXT_IDS[r] for r in found["rows"]]


def test_learned_parts_alone(tmp_path: Path) -> None:
    make_index(tmp_path / "x.vqd", "ip")
    report = vqd.export_index(tmp_path / "x.vqd", tmp_path / "x.npz", to="numpy", rows=False)
    with np.load(tmp_path / "x.npz") as file:
        assert set(file.files) == {"about", "mean", "coarse", "router", "rotation", "codewords", "doc_codewords"}
    assert report["bytes"] == (tmp_path / "x.npz").stat().st_size
