"""The undistilled start: product codes as good as faiss', additive codes better, rotations that are rotations."""

from __future__ import annotations

from dataclasses import replace

import faiss
import numpy as np
import numpy.typing as npt
import pytest
from threadpoolctl import threadpool_limits

from vqdistill.config import KSUB, IvfPqConfig
from vqdistill.model import codebooks, euclidean
from vqdistill.model.additive import RowTerms, own_directions, row_metric
from vqdistill.model.codebooks import Coarse, serve_rows, train_additive_start, train_coarse, train_start
from vqdistill.model.ivfpq import IvfPqModel
from vqdistill.model.kmeans import nearest
from vqdistill.types import F32Rows, Metric

ARRAYS = ("mean", "coarse", "router", "rotation", "codewords", "doc_codewords")
STARTS = {"pq": train_start, "additive": train_additive_start}


def shape(m: int, codes: str = "pq", seed: int = 0) -> IvfPqConfig:
    return IvfPqConfig(nlist=8, m=m, codes=codes, seed=seed)


def start(x: F32Rows, m: int, codes: str, *, residual: bool = False, seed: int = 0) -> IvfPqModel:
    coarse = train_coarse(x, 8, seed)
    return STARTS[codes](x, coarse, shape(m, codes, seed), Metric.IP, residual=residual)


def error(model: IvfPqModel, x: F32Rows) -> float:
    return float(((x - model.decode(model.encode(x))) ** 2).sum(dtype=np.float64))


@pytest.fixture(scope="module")
def product_start(sample: F32Rows) -> IvfPqModel:
    return train_start(sample, train_coarse(sample, 8, 0), shape(32), Metric.COSINE, residual=False)


@pytest.fixture(scope="module")
def additive_start(sample: F32Rows) -> IvfPqModel:
    coarse = train_coarse(sample, 8, 0)
    return train_additive_start(sample, coarse, shape(32, "additive"), Metric.COSINE, residual=False)


def test_coarse_lists_are_the_nearest(clustered: F32Rows) -> None:
    coarse = train_coarse(clustered, 8, 0)
    assert coarse.lists.dtype == np.int32
    assert np.array_equal(coarse.lists, nearest(clustered, coarse.centroids))


def test_product_codes_reconstruct_as_well_as_faiss(sample: F32Rows, product_start: IvfPqModel) -> None:
    y = sample - product_start.mean
    d = y.shape[1]
    opq, pq = faiss.OPQMatrix(d, 32), faiss.ProductQuantizer(d, 32, 4)
    # Its Procrustes steps as many as ours; the quantizer inside must be the 4-bit one.
    opq.pq, opq.niter = faiss.ProductQuantizer(d, 32, 4), 30
    opq.train(y)
    z = opq.apply(y)
    pq.train(z)
    wanted = float(((z - pq.decode(pq.compute_codes(z))) ** 2).sum())
    assert error(product_start, sample) <= 1.03 * wanted


def test_codes_are_those_of_faiss_given_the_codewords(sample: F32Rows, product_start: IvfPqModel) -> None:
    pq = faiss.ProductQuantizer(sample.shape[1], 32, 4)
    faiss.copy_array_to_vector(product_start.doc_codewords.ravel(), pq.centroids)
    packed = pq.compute_codes((sample - product_start.mean) @ product_start.rotation.T)
    wanted = np.stack([packed & 15, packed >> 4], axis=2).reshape(len(sample), 32)
    assert np.array_equal(product_start.encode(sample).codes, wanted)


@pytest.mark.parametrize(("d", "m"), [(20, 4), (20, 6), (20, 16), (20, 32), (3, 2), (2, 4)])
def test_rotation_has_orthonormal_columns(clustered: F32Rows, d: int, m: int) -> None:
    model = start(np.ascontiguousarray(clustered[:300, :d]), m, "pq")
    dsub = -(-d // m)
    assert model.rotation.shape == (m * dsub, d) and model.codewords.shape == (m, KSUB, dsub)
    np.testing.assert_allclose(model.rotation.T @ model.rotation, np.eye(d), atol=1e-4)


@pytest.mark.parametrize("codes", ["pq", "additive"])
def test_threads_of_libraries_change_nothing(sample: F32Rows, codes: str) -> None:
    """BLAS and LAPACK round differently on several threads; the same seed must still give the same bytes."""
    x, made = np.ascontiguousarray(sample[:, :128]), []
    for threads in (1, 2):
        with threadpool_limits(threads):
            model = start(x, 16, codes, residual=codes == "additive")
            made.append((model, model.encode(x)))
    (one, its_codes), (two, other_codes) = made
    assert all(np.array_equal(getattr(one, name), getattr(two, name)) for name in ARRAYS)
    assert np.array_equal(its_codes.codes, other_codes.codes) and np.array_equal(its_codes.lists, other_codes.lists)


@pytest.mark.parametrize("codes", ["pq", "additive"])
@pytest.mark.parametrize("residual", [False, True])
def test_a_start_is_undistilled_and_well_formed(clustered: F32Rows, codes: str, residual: bool) -> None:
    model = start(clustered, 4, codes, residual=residual)
    assert np.array_equal(model.router, model.coarse)
    assert np.array_equal(model.codewords, model.doc_codewords)
    assert (model.residual, model.additive, model.metric) == (residual, codes == "additive", Metric.IP)
    assert np.array_equal(model.coarse, train_coarse(clustered, 8, 0).centroids)
    np.testing.assert_allclose(model.mean, clustered.mean(axis=0), rtol=1e-5)
    for name in ARRAYS:
        array = getattr(model, name)
        assert array.dtype == np.float32 and array.flags.c_contiguous and np.isfinite(array).all(), name


@pytest.mark.parametrize("codes", ["pq", "additive"])
def test_seed_decides(clustered: F32Rows, codes: str) -> None:
    first, again, other = (start(clustered, 4, codes, seed=seed) for seed in (1, 1, 2))
    assert all(np.array_equal(getattr(first, name), getattr(again, name)) for name in ARRAYS)
    assert not np.array_equal(first.codewords, other.codewords)


@pytest.mark.parametrize("codes", ["pq", "additive"])
def test_residuals_are_smaller_than_clustered_rows(clustered: F32Rows, codes: str) -> None:
    """With a list for each cluster: fewer are found again by additive codes of the rows themselves."""
    coarse = train_coarse(clustered, 32, 0)
    plain, residual = (
        STARTS[codes](clustered, coarse, shape(2, codes, 0), Metric.IP, residual=which) for which in (False, True)
    )
    assert error(residual, clustered) < 0.9 * error(plain, clustered)


@pytest.mark.parametrize("codes", ["pq", "additive"])
def test_more_bytes_reconstruct_better(clustered: F32Rows, codes: str) -> None:
    errors = [error(start(clustered, m, codes), clustered) for m in (2, 4, 10)]
    assert errors[1] < 0.9 * errors[0] and errors[2] < 0.9 * errors[1]


@pytest.mark.parametrize("codes", ["pq", "additive"])
@pytest.mark.parametrize("n", [1, 3, 15, 17])
def test_fewer_rows_than_codewords(clustered: F32Rows, codes: str, n: int) -> None:
    x = clustered[:n]
    coarse = train_coarse(x, 2, 0)
    model = STARTS[codes](x, coarse, IvfPqConfig(nlist=2, m=4, codes=codes), Metric.IP, residual=False)
    spread = float(((x - x.mean(axis=0)) ** 2).sum())
    assert all(np.isfinite(getattr(model, name)).all() for name in ARRAYS)
    assert error(model, x) <= 0.5 * spread + 1e-3


@pytest.mark.parametrize("codes", ["pq", "additive"])
@pytest.mark.parametrize("value", [0.0, 1.5])
def test_nothing_but_duplicates(codes: str, value: float) -> None:
    x = np.full((40, 6), value, np.float32)
    assert error(start(x, 4, codes), x) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("m", [2, 4, 10])
@pytest.mark.parametrize("residual", [False, True])
def test_additive_codes_reconstruct_better_at_the_same_bytes(clustered: F32Rows, m: int, residual: bool) -> None:
    additive, pq = (start(clustered, m, codes, residual=residual) for codes in ("additive", "pq"))
    assert error(additive, clustered) < 0.97 * error(pq, clustered)


def test_additive_codes_reconstruct_better_on_real_rows(
    sample: F32Rows, additive_start: IvfPqModel, product_start: IvfPqModel
) -> None:
    assert error(additive_start, sample) < error(product_start, sample)


def some_terms(x: F32Rows, count: int = 12, most: int = 3) -> RowTerms:
    """Queries near some rows; each row is ranked by its nearest ones."""
    rng = np.random.default_rng(0)
    centred = x - x.mean(axis=0)
    queries = centred[rng.choice(len(x), count, replace=False)]
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    lists = np.argsort(-(centred @ queries.T), axis=1)[:, :most].astype(np.int32)
    return RowTerms(lists, np.full(lists.shape, 1.5, np.float32), np.asarray(queries, np.float32))


def metric_error(model: IvfPqModel, x: F32Rows, lists: npt.NDArray[np.int32], terms: RowTerms) -> float:
    """sum_i e_i^T A_i e_i of the model's own codes."""
    metric = row_metric(own_directions(x, model.mean), terms)
    base = model.coarse[lists] if model.residual else model.mean
    words = model.doc_codewords.astype(np.float64)
    e = x - base - words[np.arange(model.m), model.quantize(x, lists, terms)].sum(axis=1)
    own = metric.eta * (e * metric.x).sum(axis=1) ** 2
    seen = (terms.weights * (e @ terms.queries.T)[np.arange(len(x))[:, None], terms.lists] ** 2).sum(axis=1)
    return float(((e**2).sum(axis=1) + own + seen).sum())


@pytest.mark.parametrize("residual", [False, True])
def test_serving_the_queries_lowers_their_error(
    monkeypatch: pytest.MonkeyPatch, clustered: F32Rows, residual: bool
) -> None:
    monkeypatch.setattr(euclidean, "_MOST_RESIDUAL", 1)
    monkeypatch.setattr(euclidean, "_FEWEST_ROWS", 0)
    coarse, terms = train_coarse(clustered, 8, 0), some_terms(clustered)
    before = train_additive_start(clustered, coarse, shape(4, "additive"), Metric.IP, residual=residual)
    after = serve_rows(before, clustered, coarse, terms, 0)
    assert metric_error(after, clustered, coarse.lists, terms) < 0.97 * metric_error(
        before, clustered, coarse.lists, terms
    )
    assert np.array_equal(after.codewords, after.doc_codewords)
    assert all(getattr(after, name) is getattr(before, name) for name in ("mean", "coarse", "router", "rotation"))


@pytest.mark.parametrize("m", [8, 64])
def test_serving_the_queries_lowers_their_error_from_a_product_start(sample: F32Rows, m: int) -> None:
    coarse, terms = train_coarse(sample, 8, 0), some_terms(sample)
    before = train_additive_start(sample, coarse, shape(m, "additive"), Metric.IP, residual=True)
    after = serve_rows(before, sample, coarse, terms, 0)
    errors = [metric_error(model, sample, coarse.lists, terms) for model in (before, after)]
    assert errors[1] < 0.99 * errors[0]


def test_a_refit_is_taken_only_if_other_rows_gain(monkeypatch: pytest.MonkeyPatch, sample: F32Rows) -> None:
    coarse, terms = train_coarse(sample, 8, 0), some_terms(sample)
    good = train_additive_start(sample, coarse, shape(8, "additive"), Metric.IP, residual=True)
    noise = np.random.default_rng(0).standard_normal(good.codewords.shape).astype(np.float32)
    bad = replace(good, doc_codewords=good.doc_codewords + 0.05 * noise)
    monkeypatch.setattr(codebooks, "_ADDITIVE_ROWS", 1000)
    monkeypatch.setattr(codebooks, "_ROWS_PER_WORD", 1)
    fitted, better = codebooks.refit_rows(bad, sample, coarse, terms, 0, None, 1)
    assert better
    assert metric_error(fitted, sample, coarse.lists, terms) < 0.9 * metric_error(bad, sample, coarse.lists, terms)
    monkeypatch.setattr(codebooks, "serve_rows", lambda *_: bad)
    kept, better = codebooks.refit_rows(good, sample, coarse, terms, 0, None, 1)
    assert kept is good and not better


def test_many_codebooks_are_fitted_to_more_rows() -> None:
    assert [codebooks._additive_rows(m) for m in (2, 64, 128, 256)] == [40_960, 40_960, 81_920, 163_840]


def test_training_rows_are_capped(monkeypatch: pytest.MonkeyPatch, clustered: F32Rows) -> None:
    """Of many rows a seeded part is used; lists must be taken along."""
    for name in ("_PQ_ROWS", "_OPQ_ROWS", "_ADDITIVE_ROWS"):
        monkeypatch.setattr(f"vqdistill.model.codebooks.{name}", 600)
    monkeypatch.setattr("vqdistill.model.codebooks._ROWS_PER_WORD", 1)
    for codes in ("pq", "additive"):
        model = start(clustered, 4, codes, residual=True)
        again = start(clustered, 4, codes, residual=True)
        assert np.array_equal(model.codewords, again.codewords)
        assert error(model, clustered) < 0.5 * float(((clustered - model.mean) ** 2).sum())
    assert isinstance(train_coarse(clustered, 8, 0), Coarse)
