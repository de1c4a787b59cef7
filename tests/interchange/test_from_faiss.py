"""faiss indexes as a start: their parts are read as they are, and distillation begins with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

import vqdistill as vqd
from tests.interchange.support import make_index
from tests.searching import exact_scores
from vqdistill.cli import main
from vqdistill.errors import InvalidInput
from vqdistill.interchange.from_faiss import model_from_faiss

D, M, NLIST = 32, 16, 16
SAMPLE = Path(__file__).parent.parent.parent / "data" / "debian-sample.h5"
METRICS = {"ip": faiss.METRIC_INNER_PRODUCT, "cosine": faiss.METRIC_INNER_PRODUCT, "l2": faiss.METRIC_L2}


def rows(n: int, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(7).standard_normal((D, D)) / np.sqrt(D)
    x = (rng.standard_normal((n, D)) @ mix).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


X, QUERIES = rows(3000, 0), rows(300, 1)


def ivf_pq(metric: str = "ip", *, residual: bool = True, nbits: int = 4, d: int = D) -> Any:
    quantizer = (faiss.IndexFlatL2 if metric == "l2" else faiss.IndexFlatIP)(d)
    index = faiss.IndexIVFPQ(quantizer, d, NLIST, M, nbits, METRICS[metric])
    index.by_residual = residual
    return index


def written(index: Any, path: Path, x: Any = X, add: bool = True) -> Path:
    index.train(x)
    if add:
        index.add(x)
    faiss.write_index(index, str(path))
    return path


def behind(transform: Any, index: Any) -> Any:
    return faiss.IndexPreTransform(transform, index)


def recall(metric: str, found: Any) -> float:
    best = np.argsort(-exact_scores(metric, QUERIES, X), axis=1)[:, :10]
    return float(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, best, strict=True)]))


def refined(index: Any) -> Any:
    return faiss.IndexRefineFlat(index)


@pytest.mark.parametrize(
    ("metric", "residual", "around"),
    [
        ("ip", True, lambda index: index),
        ("cosine", False, lambda index: behind(faiss.OPQMatrix(D, M), index)),
        ("cosine", True, lambda index: refined(behind(faiss.RandomRotationMatrix(D, D), index))),
        ("cosine", True, lambda index: behind(faiss.NormalizationTransform(D, 2.0), index)),
        ("l2", False, lambda index: index),
    ],
)
def test_an_undistilled_compile_finds_what_faiss_finds(
    metric: str, residual: bool, around: Any, tmp_path: Path
) -> None:
    """By the same lists and codebooks; faiss assigns rows by products under ip, a compile by distances."""
    index = around(ivf_pq(metric, residual=residual))
    path = written(index, tmp_path / "old.faiss")
    model = model_from_faiss(path, metric)
    assert (model.nlist, model.m, model.d, model.residual) == (NLIST, M, D, residual)
    vqd.compile(X, tmp_path / "x.vqd", metric=metric, distill=False, start=model, queries="none")
    found = vqd.open(tmp_path / "x.vqd").search(QUERIES, 10, nprobe=NLIST, refine=0).ids
    plain = faiss.downcast_index(index.base_index) if isinstance(index, faiss.IndexRefine) else index
    faiss.extract_index_ivf(plain).nprobe = NLIST
    _, theirs = plain.search(QUERIES, 10)
    best = np.argsort(-exact_scores(metric, QUERIES, X), axis=1)[:, :10]
    recalls = [
        np.mean([len(set(a) & set(b)) / 10 for a, b in zip(each, best, strict=True)]) for each in (found, theirs)
    ]
    assert recalls[0] >= recalls[1] - 0.02 and recalls[1] > 0.3


def test_fast_scan_has_the_same_parts(tmp_path: Path) -> None:
    index = ivf_pq("ip", residual=False)
    plain = model_from_faiss(written(index, tmp_path / "plain"), "ip")
    faiss.write_index(faiss.IndexIVFPQFastScan(index), str(tmp_path / "fast"))
    fast = model_from_faiss(tmp_path / "fast", "ip")
    assert all((getattr(plain, name) == getattr(fast, name)).all() for name in ("coarse", "codewords", "rotation"))


def test_distillation_begins_with_it_and_gains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = np.concatenate([block.rows for block in vqd.open_source(SAMPLE, metric="cosine").blocks()])
    ivf = faiss.IndexIVFPQ(faiss.IndexFlatIP(x.shape[1]), x.shape[1], NLIST, 2 * M, 4, faiss.METRIC_INNER_PRODUCT)
    path = written(behind(faiss.RandomRotationMatrix(x.shape[1], x.shape[1]), ivf), tmp_path / "old.faiss", x)
    options = ["-o", str(tmp_path / "x.vqd"), "--metric", "cosine", "--start", str(path), "--json"]
    with pytest.raises(SystemExit) as done:
        main(["compile", str(SAMPLE), *options])
    assert done.value.code == 0
    report = json.loads(capsys.readouterr().out)["report"]
    assert report["start"]["given"] and report["start"]["residual"]
    stages = {stage["stage"]: stage for stage in report["stages"]}
    assert "lists" not in stages and stages["codes"]["kept"]
    assert stages["codes"]["before"] == pytest.approx(report["start"]["recall"], abs=0.02)
    assert vqd.open(tmp_path / "x.vqd").reader.manifest.nlist == NLIST


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: faiss.IndexFlatIP(D), "must hold an IVF-PQ index, got IndexFlatIP"),
        (lambda: ivf_pq(nbits=8), "must have codes of 4 bits, as this index has, got 8"),
        (lambda: behind(faiss.PCAMatrix(D, M), ivf_pq(d=M)), "must turn rows only before it codes them|keep distances"),
        (lambda: behind(faiss.CenteringTransform(D), ivf_pq()), "must have rotations only before its codes"),
    ],
)
def test_what_is_no_such_index_is_refused(make: Any, sentence: str, tmp_path: Path) -> None:
    path = written(make(), tmp_path / "old.faiss", add=False)
    with pytest.raises(InvalidInput, match=sentence):
        model_from_faiss(path, "ip")


def test_parts_that_do_not_agree_are_refused(tmp_path: Path) -> None:
    index = ivf_pq()
    index.train(X)
    index.quantizer.reset()
    index.quantizer.add(X[:5])
    faiss.write_index(index, str(tmp_path / "old.faiss"))
    with pytest.raises(InvalidInput, match=r"must agree in dimensions and lists, \(32, 16, 32\), got \(32, 5, 32\)"):
        model_from_faiss(tmp_path / "old.faiss", "ip")


def test_what_was_exported_comes_back(tmp_path: Path) -> None:
    searcher = make_index(tmp_path / "x.vqd", "ip")
    vqd.export_index(tmp_path / "x.vqd", tmp_path / "x.faiss", to="faiss")
    model, wanted = model_from_faiss(tmp_path / "x.faiss", "ip"), searcher.reader.model
    shift = (wanted.mean @ wanted.rotation.T).reshape(wanted.m, 1, wanted.dsub)
    np.testing.assert_allclose(model.codewords, wanted.codewords + shift, atol=1e-4)
    np.testing.assert_allclose(model.coarse, wanted.router, atol=1e-4)


def test_no_index_at_all(tmp_path: Path) -> None:
    (tmp_path / "old.faiss").write_bytes(b"nothing of faiss")
    with pytest.raises(InvalidInput, match=r"old.faiss must be a file with a faiss index"):
        model_from_faiss(tmp_path / "old.faiss", "ip")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"ram": "8B/vec"}, "ram must be None with a start, whose codes take 8 B/vec, got '8B/vec'"),
        ({"recall": "0.9@10"}, "recall must be None with a start"),
        ({"codes": "additive"}, "codes must be pq, as those of the start, got 'additive'"),
        ({"metric": "cosine"}, r"start must have product codes, and the metric, .*, got \('pq', 'ip', 32, 2\)"),
        ({"warm_start": "x"}, "start and warm_start must not be given both"),
    ],
)
def test_options_that_a_start_decides(options: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    model = model_from_faiss(written(ivf_pq(), tmp_path / "old.faiss"), "ip")
    with pytest.raises(InvalidInput, match=sentence):
        vqd.compile(X, tmp_path / "x.vqd", queries="none", **({"metric": "ip"} | options), start=model)
    assert [path.name for path in tmp_path.iterdir()] == ["old.faiss"]
