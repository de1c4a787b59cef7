"""The model value: which arrays fit together, encoding with ties and in any company, decoding."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vqdistill.config import KSUB
from vqdistill.errors import InvalidInput
from vqdistill.model import ivfpq
from vqdistill.model.additive import RowTerms
from vqdistill.model.ivfpq import IvfPqModel
from vqdistill.types import Codes, Metric

D, NLIST, M, DSUB = 6, 5, 4, 2


def normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng([seed, *shape]).standard_normal(shape, np.float32)


def make(codes: str = "pq", *, metric: Metric = Metric.IP, residual: bool = False) -> IvfPqModel:
    """Product codes with m * dsub = 8 > d = 6, or additive ones; the query side differs from the document side."""
    additive = codes == "additive"
    dsub = D if additive else DSUB
    rotation = np.empty((0, D), np.float32) if additive else np.linalg.qr(normal(M * DSUB, D))[0]
    return IvfPqModel(
        metric=metric,
        residual=residual,
        mean=normal(D),
        coarse=3 * normal(NLIST, D),
        router=normal(NLIST, D, seed=1),
        rotation=rotation,
        codewords=normal(M, KSUB, dsub, seed=1),
        doc_codewords=normal(M, KSUB, dsub),
    )


KINDS = [("pq", False), ("pq", True), ("additive", False), ("additive", True)]


@pytest.mark.parametrize("codes", ["pq", "additive"])
def test_shape(codes: str) -> None:
    model = make(codes)
    assert (model.nlist, model.d, model.m) == (NLIST, D, M)
    assert model.additive == (codes == "additive")
    assert model.dsub == (D if model.additive else DSUB)


@pytest.mark.parametrize(
    ("codes", "name", "shape"),
    [
        ("pq", "mean", (D + 1,)),
        ("pq", "mean", (D, 1)),
        ("pq", "coarse", (NLIST, D + 1)),
        ("pq", "coarse", (NLIST + 1, D)),
        ("pq", "coarse", (D,)),
        ("pq", "router", (NLIST - 1, D)),
        ("pq", "rotation", (M * DSUB, D - 1)),
        ("pq", "rotation", (M * DSUB + 2, D)),
        ("pq", "rotation", (D,)),
        ("pq", "rotation", (0, D)),
        ("pq", "codewords", (M, KSUB, DSUB + 1)),
        ("pq", "codewords", (M + 2, KSUB, DSUB)),
        ("pq", "codewords", (M, KSUB)),
        ("pq", "doc_codewords", (M, KSUB - 1, DSUB)),
        ("additive", "rotation", (0, D + 1)),
        ("additive", "rotation", (M * DSUB, D)),
        ("additive", "codewords", (M, KSUB, D - 1)),
    ],
)
def test_arrays_must_agree(codes: str, name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInput, match="model arrays must agree in nlist, d, m and dsub with ksub 16, got"):
        replace(make(codes), **{name: np.zeros(shape, np.float32)})


@pytest.mark.parametrize(
    "shape", [(M, 15, DSUB), (M, 17, DSUB), (M, 256, DSUB), (M, KSUB), (KSUB,), (M, KSUB, DSUB, 1)]
)
def test_codewords_are_sixteen_a_subspace(shape: tuple[int, ...]) -> None:
    words = np.zeros(shape, np.float32)
    with pytest.raises(InvalidInput, match="ksub 16"):
        replace(make(), codewords=words, doc_codewords=words)


@pytest.mark.parametrize(("codes", "residual"), KINDS[1:])
def test_l2_takes_plain_product_codes_only(codes: str, residual: bool) -> None:
    with pytest.raises(InvalidInput, match="metric l2 needs plain product codes"):
        make(codes, metric=Metric.L2, residual=residual)
    assert make("pq", metric=Metric.L2).metric is Metric.L2


@pytest.mark.parametrize("codes", ["pq", "additive"])
@pytest.mark.parametrize(
    "x", [np.zeros((2, D + 1), np.float32), np.zeros(D, np.float32), np.zeros((2, D)), np.zeros((1, 2, D), np.float32)]
)
def test_rows_to_encode_are_checked(codes: str, x: Any) -> None:
    with pytest.raises(InvalidInput, match=rf"x must be \(b, {D}\) float32, got \("):
        make(codes).encode(x)


@pytest.mark.parametrize(("codes", "residual"), KINDS)
@pytest.mark.parametrize("n", [0, 1, 33])
def test_encoding_gives_the_documented_arrays(codes: str, residual: bool, n: int) -> None:
    got = make(codes, residual=residual).encode(normal(n, D))
    assert (got.lists.shape, got.lists.dtype) == ((n,), np.int32)
    assert (got.codes.shape, got.codes.dtype) == ((n, M), np.uint8)
    assert (got.lists < NLIST).all() and (got.codes < KSUB).all()


@pytest.mark.parametrize("residual", [False, True])
def test_product_codes_are_the_nearest_codewords(residual: bool) -> None:
    model, x = make(residual=residual), normal(50, D, seed=3)
    lists = ((x[:, None] - model.coarse) ** 2).sum(axis=2).argmin(axis=1)
    z = (x - (model.coarse[lists] if residual else model.mean)) @ model.rotation.T
    codes = ((z.reshape(-1, M, 1, DSUB) - model.doc_codewords) ** 2).sum(axis=3).argmin(axis=2)
    got = model.encode(x)
    assert np.array_equal(got.lists, lists) and np.array_equal(got.codes, codes)


def test_ties_go_to_the_lowest() -> None:
    """All codewords and all lists come in pairs of equals; the one with the lower number is taken."""
    model = make()
    words = model.doc_codewords.copy()
    words[:, 8:] = words[:, :8]
    model = replace(model, coarse=model.coarse[[0, 1, 0, 1, 1]], doc_codewords=words)
    got = model.encode(3 * normal(100, D, seed=4))
    assert set(got.lists.tolist()) == {0, 1}
    assert (got.codes < 8).all()


@pytest.mark.parametrize("codes", ["pq", "additive"])
def test_encoding_knows_the_document_side_only(codes: str) -> None:
    model, x = make(codes, residual=True), normal(20, D, seed=5)
    other = replace(model, router=model.router + 1, codewords=2 * model.codewords)
    assert np.array_equal(other.encode(x).codes, model.encode(x).codes)
    assert np.array_equal(other.decode(model.encode(x)), model.decode(model.encode(x)))


@pytest.mark.parametrize(("codes", "residual"), KINDS)
@pytest.mark.parametrize("block", [1, 3, 16])
def test_codes_do_not_depend_on_the_rows_beside(codes: str, residual: bool, block: int) -> None:
    model, x = make(codes, residual=residual), normal(65, D, seed=6)
    whole = model.encode(x)
    for at in range(0, len(x), block):
        part = model.encode(x[at : at + block])
        assert np.array_equal(part.codes, whole.codes[at : at + block])
        assert np.array_equal(part.lists, whole.lists[at : at + block])


@pytest.mark.parametrize(("codes", "residual"), KINDS)
@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 50])
def test_encoding_in_pieces(monkeypatch: pytest.MonkeyPatch, codes: str, residual: bool, n: int) -> None:
    """Every piece must get its own rows, lists and queries."""
    model, x = make(codes, residual=residual), normal(50, D, seed=7)
    rng = np.random.default_rng(0)
    lists, weights = rng.integers(0, D, (50, 2), dtype=np.int32), 20 * rng.random((50, 2), np.float32)
    terms = RowTerms(lists, weights, np.eye(D, dtype=np.float32))
    whole = model.encode(x, terms)
    monkeypatch.setattr(ivfpq, "_BLOCK_BYTES", 16 * 4 * D)
    got = model.encode(x[:n], terms.take(np.arange(n)))
    assert np.array_equal(got.codes, whole.codes[:n]) and np.array_equal(got.lists, whole.lists[:n])


@pytest.mark.parametrize("residual", [False, True])
def test_decoding_product_codes_undoes_the_rotation(residual: bool) -> None:
    model = make(residual=residual)
    codes = model.encode(normal(30, D, seed=8))
    words = model.doc_codewords[np.arange(M), codes.codes].reshape(30, -1)
    base = model.coarse[codes.lists] if residual else model.mean
    np.testing.assert_allclose(model.decode(codes), base + words @ model.rotation, atol=1e-5)


@pytest.mark.parametrize("residual", [False, True])
def test_decoding_additive_codes_adds_up(residual: bool) -> None:
    model = make("additive", residual=residual)
    codes = model.encode(normal(30, D, seed=8))
    words = model.doc_codewords[np.arange(M), codes.codes].sum(axis=1)
    got = model.decode(codes)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, (model.coarse[codes.lists] if residual else model.mean) + words, atol=1e-5)


@given(st.integers(0, 2**32))
@settings(max_examples=25)
def test_product_codes_survive_decoding(seed: int) -> None:
    """Distinct codewords, a square rotation and a fixed list: encode(decode(c)) = c."""
    rng = np.random.default_rng(seed)
    words = np.stack([rng.permutation(KSUB * 3).reshape(KSUB, 3) for _ in range(2)]).astype(np.float32)
    model = replace(
        make(residual=True),
        rotation=np.linalg.qr(rng.standard_normal((D, D)))[0].astype(np.float32),
        codewords=words,
        doc_codewords=words,
    )
    codes = rng.integers(0, KSUB, (40, 2), dtype=np.uint8)
    lists = rng.integers(0, NLIST, 40, dtype=np.int32)
    assert np.array_equal(model.quantize(model.decode(Codes(lists, codes)), lists), codes)


def test_queries_of_rows_change_additive_codes_only() -> None:
    x = normal(60, D, seed=9)
    queries = np.eye(D, dtype=np.float32)
    terms = RowTerms(np.zeros((60, 1), np.int32), np.full((60, 1), 50, np.float32), queries)
    product, additive = make("pq"), make("additive")
    assert np.array_equal(product.encode(x, terms).codes, product.encode(x).codes)
    with_terms, without = additive.encode(x, terms), additive.encode(x)
    seen = [((additive.decode(codes) - x)[:, 0] ** 2).mean() for codes in (with_terms, without)]
    assert seen[0] < 0.2 * seen[1]
