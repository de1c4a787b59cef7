"""Every format, array and tensor through the source contract; metrics, companions, ids and fingerprints."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.contracts import SourceContract
from tests.data.writers import FORMATS, table
from vqdistill.data import tables
from vqdistill.data.sources import EmbeddingSource, has_column, open_queries, open_shard, open_source
from vqdistill.errors import InvalidInput
from vqdistill.types import Metric

CASES = [(name, dtype) for name, (_, dtypes) in FORMATS.items() for dtype in dtypes]


@pytest.fixture(params=["cosine", "l2"])
def metric(request: Any) -> str:
    return str(request.param)


class TestFormats(SourceContract):
    @pytest.fixture(params=CASES, ids=[f"{name}-{dtype}" for name, dtype in CASES])
    def case(self, request: Any) -> tuple[str, str]:
        return request.param  # type: ignore[no-any-return]

    @pytest.fixture
    def values(self, case: tuple[str, str]) -> Any:
        return table(case[1])

    @pytest.fixture
    def src(self, case: tuple[str, str], values: Any, tmp_path: Path, metric: str) -> EmbeddingSource:
        return open_source(FORMATS[case[0]][0](tmp_path, values), metric=metric)

    def test_element_type(self, src: EmbeddingSource, case: tuple[str, str]) -> None:
        assert src.dtype == ("bfloat16" if "bfloat16" in case[0] else case[1])

    def test_content_not_container_makes_the_fingerprint(self, src: EmbeddingSource, values: Any, metric: str) -> None:
        if src.dtype != "bfloat16":
            assert src.fingerprint() == open_source(values, metric=metric).fingerprint()


class TestArrays(SourceContract):
    @pytest.fixture(params=["numpy", "torch", "torch bfloat16", "strided", "read-only", "memmap"])
    def src(self, request: Any, values: Any, tmp_path: Path, metric: str) -> EmbeddingSource:
        if request.param == "memmap":
            np.save(tmp_path / "x.npy", values)
            return open_source(np.load(tmp_path / "x.npy", mmap_mode="r"), metric=metric)
        made = {
            "numpy": values,
            "torch": torch.tensor(values, requires_grad=True),
            "torch bfloat16": torch.tensor(values).bfloat16(),
            "strided": np.repeat(values, 2, axis=1)[:, ::2],
            "read-only": np.frombuffer(values.tobytes(), values.dtype).reshape(values.shape),
        }
        return open_source(made[request.param], metric=metric)

    @pytest.fixture
    def values(self) -> Any:
        return table("float32")


class TestWithoutCache(SourceContract):
    """Compressed blocks when there is no room to keep more than the last one."""

    @pytest.fixture(params=["hdf5, chunked", "npz, compressed", "parquet, list"])
    def src(self, request: Any, values: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EmbeddingSource:
        monkeypatch.setattr(tables, "_CACHE_BYTES", 0)
        return open_source(FORMATS[request.param][0](tmp_path, values))

    @pytest.fixture
    def values(self) -> Any:
        return table("float32", n=40)


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_values_survive_the_round_trip(name: str, data: st.DataObject, tmp_path_factory: Any) -> None:
    writer, dtypes = FORMATS[name]
    dtype = np.dtype(data.draw(st.sampled_from(dtypes)))
    shape = (data.draw(st.integers(5, 40)), data.draw(st.integers(1, 6)))
    floats = dtype.kind == "f"
    elements = st.integers(-127, 127).map(float) if floats else hnp.from_dtype(dtype)
    x = data.draw(hnp.arrays(dtype, shape, elements=elements))
    src = open_source(writer(tmp_path_factory.mktemp("t"), x), metric="ip")
    rows = data.draw(st.integers(1, 50))
    got = np.concatenate([block.rows for block in src.blocks(rows)])
    np.testing.assert_array_equal(got, x.astype(np.float32))


def _h5(path: Path, attrs: dict[str, Any] | None = None, **arrays: Any) -> str:
    with h5py.File(path / "f.h5", "w") as file:
        file.attrs.update(attrs or {})
        for key, value in arrays.items():
            file[key] = value
    return str(path / "f.h5")


@pytest.mark.parametrize(
    ("said", "metric"),
    [
        ("angular", "cosine"),
        ("euclidean", "l2"),
        ("ip", "ip"),
        ("dot", "ip"),
        ("normalized", "cosine"),
        (b"angular", "cosine"),
    ],
)
def test_hdf5_says_the_metric(tmp_path: Path, said: Any, metric: str) -> None:
    path = _h5(tmp_path, {"distance": said}, train=table("float32"))
    assert open_source(path).metric == Metric(metric)
    assert open_source(path, metric="ip").metric is Metric.IP


def test_metric_is_cosine_by_default_and_checked(tmp_path: Path) -> None:
    assert open_source(table("float32")).metric is Metric.COSINE
    with pytest.raises(InvalidInput, match="metric must be one of"):
        open_source(table("float32"), metric="hamming")
    path = _h5(tmp_path, {"distance": "hamming"}, train=table("float32"))
    with pytest.raises(InvalidInput, match="'hamming', wanted one of angular"):
        open_source(path)
    assert open_source(path, metric="l2").metric is Metric.L2


def test_scale_of_dataset_or_file_multiplies_integers_only(tmp_path: Path) -> None:
    x = table("int8")
    path = _h5(tmp_path, {"scale": 0.5}, train=x, test=x[:3], learn_queries=x[:3].astype(np.float16))
    with h5py.File(path, "a") as file:
        file["test"].attrs["scale"] = np.float64(0.25)
    src = open_source(path, metric="ip")
    np.testing.assert_array_equal(next(src.blocks()).rows, x * np.float32(0.5))
    test, learn = src.companion("test"), src.companion("learn_queries")
    assert test is not None and learn is not None
    np.testing.assert_array_equal(next(test.blocks()).rows, x[:3] * np.float32(0.25))
    np.testing.assert_array_equal(next(learn.blocks()).rows, x[:3])
    assert src.fingerprint() != open_source(x, metric="ip").fingerprint()


@pytest.mark.parametrize("scale", [0, -1, np.nan, np.inf, "1", [1, 2]])
def test_scale_must_be_one_positive_number(tmp_path: Path, scale: Any) -> None:
    with pytest.raises(InvalidInput, match="scale"):
        open_source(_h5(tmp_path, {"scale": scale}, train=table("int8")))


def test_companions(tmp_path: Path) -> None:
    x = table("float32")
    labels = np.arange(4)
    src = open_source(
        _h5(tmp_path, train=x, test=x[:4], learn=x[4:8], test_labels=labels, neighbors=np.eye(3, dtype=int))
    )
    learn = src.companion("learn_queries")
    assert learn is not None and learn.metric is src.metric and learn.n == 4
    np.testing.assert_allclose(np.linalg.norm(next(learn.blocks()).rows, axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(src.companion("test_labels"), labels)
    assert np.shape(src.companion("neighbors")) == (3, 3)
    assert src.companion("distances") is None and src.companion("learn_labels") is None
    assert open_source(x).companion("test") is None


def test_companions_of_npz_and_of_groups(tmp_path: Path) -> None:
    x = table("float32")
    np.savez(tmp_path / "f.npz", train=x, test=x[:2], learn_queries=x[:3])
    src = open_source(tmp_path / "f.npz")
    test = src.companion("test")
    assert test is not None and test.n == 2
    with h5py.File(tmp_path / "g.h5", "w") as file:
        file["a/train"], file["b/test"], file["a/learn_queries"] = x, x, x[:3]
    grouped = open_source(f"{tmp_path}/g.h5:a/train")
    learn = grouped.companion("learn_queries")
    assert learn is not None and learn.n == 3 and grouped.companion("test") is None


def test_companion_queries_are_checked(tmp_path: Path) -> None:
    x = table("float32")
    src = open_source(_h5(tmp_path, train=x, test=x[:, :3], learn=np.zeros((2, 5), np.float32)))
    with pytest.raises(InvalidInput, match="must have dimension 5 .* got 3"):
        src.companion("test")
    learn = src.companion("learn_queries")
    assert learn is not None
    with pytest.raises(InvalidInput, match="learn row 0 is a zero vector"):
        next(learn.blocks())


def test_open_queries(tmp_path: Path) -> None:
    x = table("float32")
    src = open_source(x, metric="l2")
    assert open_queries(x[0], src).n == 1
    assert open_queries(torch.tensor(x[0]), src).n == 1
    assert open_queries(_h5(tmp_path, train=x, learn_queries=x[:3]), src).n == 3
    assert open_queries(_h5(tmp_path, train=x, test=x[:4]), src, ("test",)).metric is Metric.L2
    own = open_source(x[:2], metric="l2")
    assert open_queries(own, src) is own
    ids = open_queries(x[:2], src, ids=["a", "b"]).ids
    assert ids is not None and ids.slice(0, 2) == ["a", "b"]
    with pytest.raises(InvalidInput, match="metric cosine"):
        open_queries(open_source(x), src)
    with pytest.raises(InvalidInput, match="must have dimension 5 .* got 4"):
        open_queries(x[:, :4], src)
    with pytest.raises(InvalidInput, match="needs a key"):
        open_queries(_h5(tmp_path, train=x, test=x[:4]), src)


def test_key_rules(tmp_path: Path) -> None:
    x = table("float32")
    np.savez(tmp_path / "two.npz", a=x, b=x)
    with pytest.raises(InvalidInput, match=r"needs a key, as in .*two.npz:KEY; it holds a, b"):
        open_source(tmp_path / "two.npz")
    np.savez(tmp_path / "named.npz", a=x, vectors=x[:3], emb=x)
    assert open_source(tmp_path / "named.npz").n == 3
    np.save(tmp_path / "odd:name.npy", x)
    assert open_source(tmp_path / "odd:name.npy").n == len(x)
    np.savez(tmp_path / "odd:arch.npz", a=x, b=x)
    assert open_source(f"{tmp_path}/odd:arch.npz:b").n == len(x)


def test_fingerprint_sees_every_change(tmp_path: Path) -> None:
    x = table("float32")
    changed = x.copy()
    changed[17, 3] += 1
    variants = [
        open_source(x, metric="l2"),
        open_source(x, metric="ip"),
        open_source(changed, metric="l2"),
        open_source(x.astype(np.float64), metric="l2"),
        open_source(x.reshape(5, -1), metric="l2"),
        open_source(x[::-1], metric="l2"),
        open_source(x, metric="l2", ids=list(range(len(x)))),
        open_source(x, metric="l2", ids=[str(i) for i in range(len(x))]),
    ]
    assert len({src.fingerprint() for src in variants}) == len(variants)


def test_fingerprint_of_large_sources_samples_both_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vqdistill.data.sources._HASH_SPANS", 4)
    monkeypatch.setattr("vqdistill.data.sources._HASH_SPAN_BYTES", 40)
    x = table("float32", n=100)
    first = open_source(x).fingerprint()
    for row, seen in ((0, True), (99, True), (10, False)):
        changed = x.copy()
        changed[row] += 1
        assert (open_source(changed).fingerprint() != first) == seen


class TestIds:
    @pytest.mark.parametrize(
        "kind", ["array", "list", "tuple", "npy", "txt", "parquet", "npz", "h5", "in h5", "in parquet"]
    )
    @pytest.mark.parametrize("strings", [False, True])
    def test_where_ids_come_from(self, tmp_path: Path, kind: str, strings: bool) -> None:
        x = table("float32")
        wanted: list[Any] = [f"döc {i}" for i in range(23)] if strings else [7 * i - 48 for i in range(23)]
        ids: Any
        if kind in ("array", "list", "tuple"):
            ids = {"array": np.array, "list": list, "tuple": tuple}[kind](wanted)
        elif kind == "npy":
            np.save(tmp_path / "i.npy", np.array(wanted))
            ids = tmp_path / "i.npy"
        elif kind == "txt":
            (tmp_path / "i.txt").write_text("".join(f"{i}\n" for i in wanted))
            ids = str(tmp_path / "i.txt")
        elif kind == "npz":
            np.savez(tmp_path / "i.npz", names=np.array(wanted))
            ids = f"{tmp_path}/i.npz:names"
        elif "h5" in kind:
            with h5py.File(tmp_path / "i.h5", "w") as file:
                file["train"], file["names"] = x, wanted
            ids = f"{tmp_path}/i.h5:names"
        else:
            pq.write_table(pa.table({"names": wanted, "e": list(x)}), tmp_path / "i.parquet", row_group_size=4)
            ids = f"{tmp_path}/i.parquet:names"
        if kind.startswith("in "):
            src = open_source(f"{tmp_path}/i.{kind[3:]}", ids="names")
        else:
            src = open_source(x, ids=ids)
        assert src.ids is not None
        assert src.ids.kind == ("str" if strings else "int64")
        assert list(src.ids.slice(0, 5)) + list(src.ids.slice(5, 99)) == wanted

    def test_of_shards(self, tmp_path: Path) -> None:
        x = table("float32")
        for i, rows in enumerate((range(4), range(4, 23))):
            pq.write_table(pa.table({"id": [f"d{r}" for r in rows], "e": list(x[rows])}), tmp_path / f"{i}.parquet")
        src = open_source(tmp_path, ids="id")
        assert src.ids is not None and src.ids.slice(3, 6) == ["d3", "d4", "d5"]

    @pytest.mark.parametrize("kind", ["column", "sidecar"])
    def test_of_one_shard_of_several(self, tmp_path: Path, kind: str) -> None:
        x, cuts, names = table("float32"), (0, 4, 5, 23), [f"d{row}" for row in range(23)]
        paths = []
        for number, (a, b) in enumerate(pairwise(cuts)):
            paths.append(str(tmp_path / f"{number}.npz"))
            np.savez(paths[-1], train=x[a:b], name=np.array(names[a:b]))
        (tmp_path / "all.txt").write_text("".join(f"{name}\n" for name in names))
        ids = "name" if kind == "column" else str(tmp_path / "all.txt")
        assert has_column(paths, "name") and not has_column(paths, "nome") and not has_column(x, "name")
        whole = open_source(paths, ids=ids)
        assert whole.fingerprint() == open_source(x, ids=names).fingerprint()
        for path, (a, b) in zip(paths, pairwise(cuts), strict=True):
            part = open_shard(path, a, metric=whole.metric, ids=ids, sidecar=kind == "sidecar")
            assert part.ids is not None and list(part.ids.slice(0, part.n)) == names[a:b]
            assert np.array_equal(part.take(np.arange(part.n)), whole.take(np.arange(a, b)))

    @pytest.mark.parametrize(
        ("ids", "message"),
        [
            (list(range(22)), "as many as there are rows, 23, got 22"),
            ([*range(22), 3], "must be unique: 3 of row 22 has occurred before"),
            ([*map(str, range(20)), "5", "1", "22"], "must be unique: '5' of row 20"),
            ([*range(22), -1], "row 22 is -1"),
            ([*map(str, range(22)), ""], "row 22 is empty"),
            ([*range(22), "a"], "all integers or all strings, got 'a' in row 22"),
            ([*map(str, range(22)), 5], "must be integers or strings, got 5 in row 22"),
            ([0.5] * 23, "must be integers or strings, got 0.5 in row 0"),
            ([None] * 23, "must be integers or strings, got None in row 0"),
            ([*range(22), 2**63], "must fit int64"),
            (np.arange(23, dtype=np.uint64) + 2**63, "must fit int64"),
            ([*"abcdefghijklmnopqrstuv", "\ud800"], "row 22 is not valid UTF-8"),
            (np.zeros((23, 2), int), "one dimension"),
            ("nowhere.txt", "must name an array, column or file"),
            ("/", "must be one file"),
        ],
    )
    def test_refused(self, ids: Any, message: str) -> None:
        with pytest.raises(InvalidInput, match=message):
            open_source(table("float32"), ids=ids)

    def test_sidecars_refused(self, tmp_path: Path) -> None:
        x = table("float32")
        np.save(tmp_path / "o.npy", np.array([{}] * 23), allow_pickle=True)
        (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\n")
        (tmp_path / "ids.csv").write_text("1\n")
        pq.write_table(pa.table({"id": [1, None, 3]}), tmp_path / "n.parquet")
        for name, message in (
            ("o.npy", "cannot be read"),
            ("bad.txt", "not UTF-8"),
            ("ids.csv", "unknown suffix"),
            ("n.parquet", "1 nulls"),
            ("n.parquet:x", "no array named 'x'; it holds id"),
        ):
            with pytest.raises(InvalidInput, match=message):
                open_source(x, ids=f"{tmp_path}/{name}")

    def test_text_that_only_looks_like_numbers_stays_text(self, tmp_path: Path) -> None:
        (tmp_path / "i.txt").write_text("1\n2\n03\n")
        ids = open_source(table("float32", n=3), ids=tmp_path / "i.txt").ids
        assert ids is not None and ids.slice(0, 3) == ["1", "2", "03"]
