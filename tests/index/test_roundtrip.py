"""What goes into an index comes out: positions, rows, ids, codes, dense rows, model and manifest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.index.support import (
    INDEX_ID,
    PLAN,
    REPORT,
    Sample,
    make_model,
    make_sample,
    open_fds,
    snapshot,
    write_sample,
)
from vqdistill.errors import CorruptIndex, InvalidInput
from vqdistill.index.byte_rows import from_bytes, to_bytes
from vqdistill.index.encodings import encode_dense
from vqdistill.index.manifest import Manifest
from vqdistill.index.opening import open_index
from vqdistill.index.policy import SearchPolicy
from vqdistill.index.reader import IndexReader
from vqdistill.index.spec import DENSE, IDS, Layout
from vqdistill.index.verify import verify
from vqdistill.index.writer import IndexWriter
from vqdistill.kernels import unpack_codes
from vqdistill.kernels.units import unit_rows
from vqdistill.model.adapter import QueryAdapter
from vqdistill.model.learned import LearnQueries
from vqdistill.model.space import sphering
from vqdistill.types import Codes

CODES = [
    ("ip", False, "f32"),
    ("cosine", False, "f32"),
    ("l2", False, "f32"),
    ("ip", True, "f32"),
    ("cosine", True, "f32"),
    ("ip", True, "f16"),
    ("cosine", True, "f16"),
    ("ip", True, "i8"),
    ("cosine", True, "i8"),
]
"""Metric, whether codes are additive, and tables."""
SHAPES = st.fixed_dictionaries(
    {
        "n": st.integers(1, 150),
        "d": st.integers(1, 12),
        "nlist": st.integers(1, 9),
        "m": st.integers(1, 4).map(lambda pairs: 2 * pairs),
        "dsub": st.integers(1, 3),
        "dense": st.sampled_from(DENSE),
        "ids": st.sampled_from(IDS),
        "model": st.sampled_from(CODES),
        "units": st.tuples(st.integers(0, 5), st.integers(0, 5)),
        "seed": st.integers(0, 2**32),
    }
)


AS_KEPT = {
    "f32": lambda x: x,
    "f16": lambda x: x.astype(np.float16).astype(np.float32),
    "i8": lambda x: from_bytes(to_bytes(x)),
}
"""What tables stand for once they are stored."""


def _expected_dense(sample: Sample) -> np.ndarray:
    """Dense rows as the format defines them, row by row."""
    rows = []
    for row in sample.x[sample.order]:
        if sample.dense == "i8":
            scale = np.float32(np.abs(row).max()) / np.float32(127)
            rows.append(scale * np.array([np.rint(value / scale) for value in row], dtype=np.float32))
        elif sample.dense == "bf16":
            rows.append(np.array([nearest_bfloat16(value) for value in row], dtype=np.float32))
        else:
            rows.append(row.astype({"f32": np.float32, "f16": np.float16}[sample.dense]).astype(np.float32))
    return np.array(rows, dtype=np.float32)


def nearest_bfloat16(value: np.float32) -> np.float32:
    """Return the bfloat16 closest to a number, of two that are as close the one whose last bit is 0."""
    low = int(value.view(np.uint32)) & 0xFFFF0000
    both = np.array([low, low + 0x10000], np.uint32).view(np.float32)
    errors = np.abs(both.astype(np.float64) - float(value))
    return both[(low >> 16) % 2 if errors[0] == errors[1] else int(errors.argmin())]


def _check(path: Path, sample: Sample) -> None:
    n, order = len(sample.x), sample.order
    positions = np.arange(n, dtype=np.int64)
    assert verify(path) == []
    with open_index(path, "full") as reader:
        assert np.array_equal(reader.rows_of(positions), order)
        ids = reader.ids_of(positions)
        assert ids.tolist() == (order.tolist() if sample.ids is None else [sample.ids[row] for row in order])
        assert np.array_equal(unpack_codes(reader._stored.arrays["codes"], n), sample.codes.codes[order])
        counts = np.diff(reader._stored.arrays["list_offsets"])
        assert np.array_equal(counts, np.bincount(sample.codes.lists, minlength=sample.model.nlist))
        if sample.dense != "none":
            assert np.array_equal(reader.dense_rows(positions), _expected_dense(sample))
        for name in ("mean", "coarse", "router", "rotation", "codewords", "doc_codewords"):
            wanted = getattr(sample.model, name)
            if name in ("coarse", "router", "codewords"):
                wanted = AS_KEPT[sample.tables](wanted)
            got = getattr(reader.model, name)
            assert np.array_equal(got, wanted) and got.dtype == np.float32, name
        for stage in ("query_adapter", "verify_adapter"):
            _check_adapter(getattr(reader.model, stage), getattr(sample.model, stage), sample.tables)
        for name in ("metric", "residual", "additive"):
            assert getattr(reader.model, name) == getattr(sample.model, name)
        manifest = reader.manifest
        assert (manifest.plan, manifest.search, manifest.report) == (PLAN, sample.search, REPORT)
        assert manifest.index_id == INDEX_ID and manifest.generation == 1
        assert reader.resident_bytes == sum(array.nbytes for array in reader._stored.arrays.values())
        assert reader.disk_bytes == sum(len(data) for data in snapshot(path).values())
        assert Manifest.parse(manifest.to_bytes(), manifest.file) == manifest


def _check_adapter(got: QueryAdapter | None, wanted: QueryAdapter | None, tables: str) -> None:
    if wanted is None or got is None:
        assert got is wanted
        return
    down, bias, up, *rest = wanted.for_engine("f4" if tables == "f32" else "f2")
    for array, stored in zip((got.down, got.bias, got.up), (down, bias, up), strict=True):
        assert np.array_equal(array, stored) and array.dtype == np.float32
    assert [got.rank, got.unit] == rest


@given(shape=SHAPES, batch=st.integers(1, 64))
@settings(max_examples=80, deadline=None)
def test_round_trip(shape: dict[str, object], batch: int) -> None:
    metric, additive, tables = shape.pop("model")  # type: ignore[misc]
    sample = make_sample(**shape, metric=metric, additive=additive, tables=tables)  # type: ignore[arg-type]
    with TemporaryDirectory() as directory:
        path = Path(directory) / "x.vqd"
        write_sample(path, sample, batch=batch)
        _check(path, sample)


@given(
    n=st.integers(0, 10**9),
    d=st.integers(1, 4096),
    nlist=st.integers(1, 10**5),
    m=st.integers(1, 128).map(lambda pairs: 2 * pairs),
    dsub=st.integers(1, 64),
)
def test_resident_bytes_follow_the_formula_of_the_format(n: int, d: int, nlist: int, m: int, dsub: int) -> None:
    blocks, layout = (n + 31) // 32, Layout(n=n, d=d, nlist=nlist, m=m, dsub=dsub, dense="f16", ids="str", id_bytes=77)
    common = 16 * m * blocks + 8 * (nlist + 1) + 2 * 4 * nlist * d + 64 * m * dsub + 4 * d
    assert layout.resident_bytes == common + 4 * m * dsub * d
    additive = replace(layout, codes="additive")
    assert additive.resident_bytes == common
    assert replace(additive, tables="f16").resident_bytes == common - 4 * nlist * d - 32 * m * dsub
    adapted = replace(additive, query_units=m, verify_units=nlist)
    assert adapted.resident_bytes == common + (4 * 2 * d + 4) * (m + nlist)


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    sample = make_sample()
    write_sample(tmp_path / "a.vqd", sample, batch=7)
    write_sample(tmp_path / "b.vqd", sample, batch=64)
    assert snapshot(tmp_path / "a.vqd") == snapshot(tmp_path / "b.vqd")


def test_payloads_of_several_checksums_and_chunks(tmp_path: Path) -> None:
    """Dense rows beyond the writer's 4 MiB chunk and the 1 MiB of a checksum."""
    sample = make_sample(n=3000, d=500, nlist=3, m=2, dsub=1, dense="f32", ids="str")
    manifest = write_sample(tmp_path / "x.vqd", sample, batch=999)
    assert len(manifest.segments["dense"].crc32) == 6
    _check(tmp_path / "x.vqd", sample)


def test_positions_of_any_shape_order_and_number(tmp_path: Path) -> None:
    for kind in IDS:
        sample = make_sample(n=300, ids=kind)
        path = tmp_path / f"{kind}.vqd"
        write_sample(path, sample)
        positions = np.array([[299, -1, 0], [5, 5, 298]], dtype=np.int64)
        with IndexReader.open(path) as reader:
            rows, ids = reader.rows_of(positions), reader.ids_of(positions)
            assert rows.shape == ids.shape == (2, 3)
            assert rows[0, 1] == -1 and ids[0, 1] == ("" if kind == "str" else -1)
            found = [int(sample.order[position]) for position in (299, 0, 5, 5, 298)]
            assert rows[positions >= 0].tolist() == found
            assert ids[positions >= 0].tolist() == [row if sample.ids is None else sample.ids[row] for row in found]
            empty = np.empty((0, 3), dtype=np.int64)
            assert reader.ids_of(empty).shape == reader.rows_of(empty).shape == (0, 3)
            assert reader.ids_of(np.full(2, -1)).tolist() == (["", ""] if kind == "str" else [-1, -1])
            for bad in (np.array([300]), np.array([-2]), np.array([0.0]), [0]):
                with pytest.raises(InvalidInput, match="positions must be"):
                    reader.ids_of(bad)  # type: ignore[arg-type]


def test_int8_rows(tmp_path: Path) -> None:
    """Zero rows stay zero, the largest value is kept, every error is at most half a step."""
    x = np.array([[0, 0, 0], [1e30, -1e30, 5e29], [1e-44, 0, -1e-44], [127, -63.4, 1]], dtype=np.float32)
    encoded = encode_dense(x, "i8")
    assert encoded.shape == (4, 7) and encoded.dtype == np.uint8
    scale = encoded[:, :4].copy().view("<f4")
    rows = scale * encoded[:, 4:].view(np.int8)
    assert (rows[[0, 2]] == 0).all() or (np.abs(rows[2] - x[2]) <= 1e-44).all()
    assert (np.abs(rows[[1, 3]] - x[[1, 3]]) <= 0.5001 * scale[[1, 3]]).all()
    assert rows[3].tolist() == [127, -63, 1]


@pytest.mark.parametrize(("dense", "value", "name"), [("f16", 70000, "float16"), ("bf16", -3.4e38, "bfloat16")])
def test_values_beyond_half_the_bits_name_the_row(tmp_path: Path, dense: str, value: float, name: str) -> None:
    sample = make_sample(n=40, dense=dense)
    sample.x[33, 1] = value
    with pytest.raises(InvalidInput, match=f"row 33 holds values beyond {name}; store dense rows as f32"):
        write_sample(tmp_path / "x.vqd", sample)
    assert os.listdir(tmp_path) == []


def test_bfloat16_rounds_to_nearest_even() -> None:
    bits = np.array(
        [0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF, 0xBF818000, 0x7F7F7FFF, 0x00000001, 0x00008001, 0x80000000],
        np.uint32,
    )
    got = encode_dense(bits.view(np.float32)[None], "bf16")
    wanted = [0x3F80, 0x3F82, 0x3F81, 0x3F80, 0xBF82, 0x7F7F, 0, 1, 0x8000]
    assert got.dtype == np.dtype("<u2") and got[0].tolist() == wanted


@given(st.lists(st.floats(-(2.0**127), 2.0**127, width=32), min_size=1))
def test_bfloat16_is_the_nearest(values: list[float]) -> None:
    row = np.array(values, np.float32)
    got = (encode_dense(row[None], "bf16").astype(np.uint32) << 16).view(np.float32)[0]
    assert got.tolist() == [nearest_bfloat16(value) for value in row]


@pytest.mark.parametrize("name", ["router", "coarse", "codewords"])
def test_tables_beyond_float16_are_refused(tmp_path: Path, name: str) -> None:
    model = make_sample(additive=True).model
    getattr(model, name).flat[3] = -65520
    options = {"dense": "f32", "ids": "rows", "index_id": INDEX_ID}
    with pytest.raises(InvalidInput, match=f"model {name} must fit float16, got 65520; store tables as f32"):
        IndexWriter(tmp_path / "x.vqd", model, tables="f16", **options)
    getattr(model, name).flat[3] = -65504
    IndexWriter(tmp_path / "x.vqd", model, tables="f16", **options).abort()


def test_half_tables_of_product_codes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="tables must be f32 for product codes, got 'f16'"):
        write_sample(tmp_path / "x.vqd", make_sample(tables="f16"))


@pytest.mark.parametrize(
    ("ids", "kind", "message"),
    [
        ([1, 2, 1], "int64", "must be unique, got 1 for rows 0 and 2"),
        (["a", "b", "b"], "str", "must be unique, got 'b' for rows 1 and 2"),
        (["a", "", "b"], "str", "id of row 1 must be text of 1..65535 bytes"),
        (["a", "b\0", "c"], "str", "id of row 1 must be text .* without NUL"),
        (["a", "b", "c" * 65536], "str", "id of row 2 must be text"),
        (["a", "b", "\ud800"], "str", "id of row 2 must be text"),
        ([b"a", "b", "c"], "str", "id of row 0 must be text .* got bytes"),
        ([1, -1, 2], "int64", "must not be -1"),
        ([1.0, 2.0, 3.0], "int64", "must be .rows,. int64, got .3,. float64"),
        ([2**63, 1, 2], "int64", "must be .rows,. int64"),
        ([2**70, 1, 2], "int64", "must be .rows,. int64"),
        ([1, 2], "int64", "one for each of 3 rows, got 2"),
        (None, "int64", "ids must be int64, got NoneType"),
        ([1, 2, 3], "rows", "ids must be None, got list"),
    ],
)
def test_bad_ids_are_refused(tmp_path: Path, ids: object, kind: str, message: str) -> None:
    sample = replace(make_sample(n=3), ids=ids, ids_kind=kind)
    with pytest.raises(InvalidInput, match=message):
        write_sample(tmp_path / "x.vqd", sample)
    assert os.listdir(tmp_path) == []


def test_equal_digests_of_different_ids_are_no_repeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("intake", "idtable"):
        monkeypatch.setattr(f"vqdistill.index.{module}.text_key", lambda text: bytes(8))
    sample = make_sample(n=20, ids="str")
    write_sample(tmp_path / "x.vqd", sample)
    _check(tmp_path / "x.vqd", sample)


def _bad_rows() -> Iterator[tuple[str, Codes, np.ndarray]]:
    good = make_sample(n=3, d=5, m=4, nlist=4)
    lists, codes, x = good.codes.lists, good.codes.codes, good.x
    nan = x.copy()
    nan[2, 0] = np.nan
    yield "x must be .3, 5. float32, got .3, 4. float32", good.codes, x[:, :4]
    yield "x must be .* got .3, 5. float64", good.codes, x.astype(np.float64)
    yield "lists must be .3,. int32, got .2,. int32", Codes(lists[:2], codes), x
    yield "codes must be .3, 4. uint8, got .3, 2. uint8", Codes(lists, codes[:, :2]), x
    yield "lists must be in .0, 4., got", Codes(lists + np.int32(9), codes), x
    yield "lists must be in .0, 4., got -1", Codes(np.array([0, -1, 0], np.int32), codes), x
    yield "codes must be in .0, 16., got 16", Codes(lists, np.full_like(codes, 16)), x
    yield "vectors row 2 holds NaN", good.codes, nan


@pytest.mark.parametrize(("message", "codes", "x"), list(_bad_rows()))
def test_bad_rows_are_refused(tmp_path: Path, message: str, codes: Codes, x: np.ndarray) -> None:
    sample = make_sample(n=3, d=5, m=4, nlist=4)
    writer = IndexWriter(tmp_path / "x.vqd", sample.model, dense="f32", ids="rows", index_id=INDEX_ID)
    with pytest.raises(InvalidInput, match=message):
        writer.add(None, codes, x)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dense": "f64"}, "dense must be one of f32, f16, bf16, i8, none, got 'f64'"),
        ({"tables": "i4"}, "tables must be one of f32, f16, i8, got 'i4'"),
        ({"ids": "uuid"}, "ids must be one of rows, int64, str, got 'uuid'"),
        ({"index_id": b"x"}, "index_id must be 16 bytes, got 1"),
        ({"path": "no/x.vqd"}, "must lie in a directory"),
    ],
)
def test_bad_arguments_are_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"path": "x.vqd", "dense": "f32", "ids": "rows", "index_id": INDEX_ID} | change
    path = tmp_path / str(arguments.pop("path"))
    with pytest.raises(InvalidInput, match=message):
        IndexWriter(path, make_sample().model, **arguments)  # type: ignore[arg-type]


def test_a_model_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    model = make_model(np.random.default_rng(0), 3, 2, 2, 2)
    model.router[1, 1] = np.inf
    with pytest.raises(InvalidInput, match="model router must be finite"):
        IndexWriter(tmp_path / "x.vqd", model, dense="f32", ids="rows", index_id=INDEX_ID)


BY_CODE = SearchPolicy(nprobe=1, refine=0)


@pytest.mark.parametrize(
    ("plan", "search", "report"),
    [
        ({"x": float("nan")}, BY_CODE, {}),
        ({"x": {1, 2}}, BY_CODE, {}),
        ({}, replace(BY_CODE, nprobe=5), {}),
        ({}, replace(BY_CODE, nprobe=0), {}),
        ({}, replace(BY_CODE, refine=5), {}),
        ({}, replace(BY_CODE, coverage=0.9), {}),
        ({}, replace(BY_CODE, error=float("inf"), confidence=0.9), {}),
        ({}, BY_CODE, {"x": 10**30}),
        ({}, BY_CODE, []),
    ],
)
def test_what_no_reader_would_take_is_not_published(
    tmp_path: Path, plan: object, search: object, report: object
) -> None:
    sample = make_sample(n=3, nlist=4)
    with (
        pytest.raises(InvalidInput, match="plan, search and report must fit a manifest"),
        IndexWriter(tmp_path / "x.vqd", sample.model, dense="none", ids="rows", index_id=INDEX_ID) as writer,
    ):
        writer.add(None, sample.codes, sample.x)
        writer.publish(plan, search, report)  # type: ignore[arg-type]
    assert os.listdir(tmp_path) == []


def test_an_index_has_rows(tmp_path: Path) -> None:
    with (
        pytest.raises(InvalidInput, match="at least one row"),
        IndexWriter(tmp_path / "x.vqd", make_sample().model, dense="none", ids="rows", index_id=INDEX_ID) as writer,
    ):
        writer.publish({}, BY_CODE, {})


def test_closing(tmp_path: Path) -> None:
    fds = open_fds()
    write_sample(tmp_path / "x.vqd", make_sample())
    reader = IndexReader.open(tmp_path / "x.vqd")
    assert open_fds() > fds and not reader.closed
    assert len(reader.rows_of(np.arange(70))) == 70
    reader.close()
    reader.close()
    assert open_fds() == fds and reader.closed
    for use in (lambda: reader.ids_of(np.array([0])), lambda: reader.model, reader.engine):
        with pytest.raises(InvalidInput, match="is closed"):
            use()


def test_a_forgotten_reader_closes_its_files(tmp_path: Path) -> None:
    fds = open_fds()
    write_sample(tmp_path / "x.vqd", make_sample())
    reader = IndexReader.open(tmp_path / "x.vqd")
    assert open_fds() > fds
    del reader
    assert open_fds() == fds


def test_an_open_index_survives_its_removal(tmp_path: Path) -> None:
    """Readers keep what they opened, as old generations are removed one day."""
    sample = make_sample(n=50)
    write_sample(tmp_path / "x.vqd", sample)
    with IndexReader.open(tmp_path / "x.vqd") as reader:
        (tmp_path / "x.vqd").rename(tmp_path / "y.vqd")
        write_sample(tmp_path / "x.vqd", make_sample(n=50, seed=9))
        assert np.array_equal(reader.rows_of(np.arange(50)), sample.order)
        assert np.array_equal(reader.dense_rows(np.arange(50)), _expected_dense(sample))
        assert np.array_equal(reader.model.coarse, sample.model.coarse)


def test_dense_rows_where_there_are_none(tmp_path: Path) -> None:
    write_sample(tmp_path / "x.vqd", make_sample(dense="none"))
    with IndexReader.open(tmp_path / "x.vqd") as reader, pytest.raises(InvalidInput, match="dense=none"):
        reader.dense_rows(np.array([0]))


def test_verify_argument(tmp_path: Path) -> None:
    write_sample(tmp_path / "x.vqd", make_sample())
    with pytest.raises(InvalidInput, match="verify must be one of headers, full, got 'none'"):
        IndexReader.open(tmp_path / "x.vqd", "none")
    with (tmp_path / "x.vqd" / "dense-1.seg").open("r+b") as file:
        file.seek(4100)
        file.write(b"\xff\xff")
    IndexReader.open(tmp_path / "x.vqd").close()
    with pytest.raises(CorruptIndex, match=r"dense-1\.seg: crc32 .*first of 1 problems"):
        IndexReader.open(tmp_path / "x.vqd", "full")


@pytest.mark.parametrize("dense", DENSE)
def test_the_engine_searches_what_was_written(tmp_path: Path, dense: str) -> None:
    """All lists probed, all rows verified: the native engine must return exact inner products of the stored rows."""
    sample = make_sample(n=100, d=6, nlist=4, m=2, dsub=3, dense=dense)
    write_sample(tmp_path / "x.vqd", sample)
    queries = np.random.default_rng(5).standard_normal((7, 6)).astype(np.float32)
    with IndexReader.open(tmp_path / "x.vqd") as reader:
        refine = 0 if dense == "none" else 100
        scores, positions, _ = reader.engine().search(queries, k=10, nprobe=4, refine=refine, threads=1)
        words = sample.model.codewords[np.arange(2), sample.codes.codes[sample.order]].reshape(100, 6)
        rows = sample.model.mean + words @ sample.model.rotation
        expected = queries @ (rows if dense == "none" else reader.dense_rows(np.arange(100))).T
    assert np.allclose(scores, np.sort(expected, axis=1)[:, ::-1][:, :10], atol=0.05 if dense == "none" else 1e-4)
    # Codes alone are scored through quantized tables, so only verified results have an exact order.
    if dense != "none":
        assert np.array_equal(positions, np.argsort(-expected, axis=1, kind="stable")[:, :10])


@pytest.mark.parametrize("tables", ["f32", "f16"])
@pytest.mark.parametrize("units", [(5, 0), (0, 3), (5, 3)])
def test_the_engine_adapts_queries_as_the_index_says(tmp_path: Path, tables: str, units: tuple[int, int]) -> None:
    """By code, an index with adapters finds for a query what one without them finds for the adapted query."""
    sample = make_sample(n=100, d=6, dense="f32", metric="cosine", additive=True, tables=tables, units=units)
    plain = replace(sample, model=replace(sample.model, query_adapter=None, verify_adapter=None))
    write_sample(tmp_path / "x.vqd", sample)
    write_sample(tmp_path / "y.vqd", plain)
    queries = unit_rows(np.random.default_rng(5).standard_normal((7, 6)).astype(np.float32), "queries")
    with IndexReader.open(tmp_path / "x.vqd") as reader, IndexReader.open(tmp_path / "y.vqd") as other:
        seen = queries if reader.model.query_adapter is None else reader.model.query_adapter(queries)
        exact = seen if reader.model.verify_adapter is None else reader.model.verify_adapter(seen)
        by_code = reader.engine().search(queries, k=10, nprobe=2, refine=0, threads=1)
        wanted = other.engine().search(seen, k=10, nprobe=2, refine=0, threads=1)
        assert np.array_equal(by_code[1], wanted[1]) and np.allclose(by_code[0], wanted[0], rtol=0, atol=1e-5)
        scores, positions, _ = reader.engine().search(queries, k=10, nprobe=4, refine=100, threads=1)
        expected = exact @ other.dense_rows(np.arange(100)).T
    assert np.array_equal(positions, np.argsort(-expected, axis=1, kind="stable")[:, :10])
    assert np.allclose(scores, np.sort(expected, axis=1)[:, ::-1][:, :10], rtol=0, atol=1e-5)
    assert not np.array_equal(exact, queries)


def test_a_space_comes_back_as_it_was(tmp_path: Path) -> None:
    sample = make_sample(additive=True, d=6)
    space = sphering(np.random.default_rng(3).standard_normal((90, 6)).astype(np.float32), 0.5)
    write_sample(tmp_path / "x.vqd", replace(sample, model=replace(sample.model, space=space)))
    write_sample(tmp_path / "y.vqd", sample)
    with IndexReader.open(tmp_path / "x.vqd") as reader, IndexReader.open(tmp_path / "y.vqd") as plain:
        got = reader.model.space
        assert got is not None and plain.model.space is None
        assert np.array_equal(got.forward, space.forward) and np.array_equal(got.inverse, space.inverse)
        assert "doc_space" not in reader._stored.arrays, "searching holds no space in memory"


@pytest.mark.parametrize("anchors", [False, True])
@pytest.mark.parametrize("queries", [0, 7])
def test_what_later_rows_are_coded_by_comes_back(tmp_path: Path, anchors: bool, queries: int) -> None:
    sample, rng = make_sample(additive=True, d=6), np.random.default_rng(3)
    learned = None
    if queries:
        scores = -np.sort(rng.standard_normal((queries, 3)).astype(np.float32))
        learned = LearnQueries(rng.standard_normal((queries, 6)).astype(np.float32), scores, queries % 2 == 0)
    model = replace(
        sample.model,
        learned=learned,
        anchors=rng.standard_normal((4, 6)).astype(np.float32) if anchors else None,
    )
    manifest = write_sample(tmp_path / "x.vqd", replace(sample, model=model))
    assert verify(tmp_path / "x.vqd") == [] and Manifest.parse(manifest.to_bytes(), manifest.file) == manifest
    required = json.loads(manifest.to_bytes())["required_features"]
    assert required == (["learned"] if anchors or queries else [])
    with IndexReader.open(tmp_path / "x.vqd") as reader:
        got = reader.model
        assert not {"anchors", "learn_queries", "learn_scores"} & set(reader._stored.arrays), (
            "searching needs none of it"
        )
        assert np.array_equal(got.anchors, model.anchors) if anchors else got.anchors is None
        assert (got.learned is None) == (learned is None)
        if got.learned is not None and learned is not None:
            assert np.array_equal(got.learned.queries, learned.queries.astype(np.float16).astype(np.float32))
            assert np.array_equal(got.learned.scores, learned.scores) and got.learned.codes == learned.codes


def test_adapters_beyond_float16_are_refused(tmp_path: Path) -> None:
    sample = make_sample(additive=True, tables="f16", units=(2, 2))
    sample.model.verify_adapter.up[0, 1] = 7e4  # type: ignore[union-attr]
    with pytest.raises(InvalidInput, match="model verify_up must fit float16, got 70000; store tables as f32"):
        write_sample(tmp_path / "x.vqd", sample)
    sample.model.verify_adapter.up[0, 1] = np.nan  # type: ignore[union-attr]
    with pytest.raises(InvalidInput, match="model verify_up must be finite"):
        write_sample(tmp_path / "x.vqd", sample)


def test_opening_loads_nothing_that_only_training_needs(tmp_path: Path) -> None:
    write_sample(tmp_path / "x.vqd", make_sample())
    code = (
        "import sys; from vqdistill.index.opening import open_index\n"
        "open_index(sys.argv[1]).engine()\n"
        "print(sorted({'torch', 'numba', 'faiss', 'sklearn', 'h5py'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x.vqd")], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
