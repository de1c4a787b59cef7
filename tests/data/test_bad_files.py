"""What cannot be used is refused with one sentence that says what, where, what was got and what is wanted."""

from __future__ import annotations

import builtins
import struct
import sys
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

from tests.data.writers import FORMATS, bins, hdf5, npy, npz, parquet_fixed, parquet_list, table, vecs
from vqdistill.data.files import SUFFIXES
from vqdistill.data.sources import open_source
from vqdistill.errors import InvalidInput, MissingDependency

X = table("float32")


def refused(x: Any, message: str, **options: Any) -> None:
    """Opening, or then reading, `x` raises one sentence."""
    with pytest.raises(InvalidInput, match=message) as caught:
        for _ in open_source(x, **options).blocks(4):
            pass
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_missing_file(tmp_path: Path) -> None:
    for path in ("x.npy", "x.h5:train", "none-*.npy", "x" * 300, "a\0b"):
        refused(f"{tmp_path}/{path}", "no such file or folder")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_empty_file(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"x{suffix}").touch()
    refused(tmp_path / f"x{suffix}", "is empty: it has 0 bytes")


def test_no_rows(tmp_path: Path) -> None:
    none = np.empty((0, 5), np.float32)
    for writer in (npy, npz, bins(".fbin"), hdf5, parquet_fixed):
        refused(writer(tmp_path, none), "empty")
    refused(none, "empty")
    refused(np.empty((5, 0), np.float32), r"is empty: its shape is \(5, 0\)")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    "content", [b"\0", b"\xff" * 3, b"garbage, but longer than any header" * 40, b"\x93NUMPY\x01\0v\0{"]
)
def test_garbage(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    refused(path, str(path))


def test_a_container_under_another_name(tmp_path: Path) -> None:
    Path(npz(tmp_path, X)).rename(tmp_path / "x.npy")
    refused(tmp_path / "x.npy", "not a .npy array")
    np.save(tmp_path / "y.npy", X)
    (tmp_path / "y.npy").rename(tmp_path / "y.h5")
    refused(tmp_path / "y.h5", "not a readable HDF5 file")


def test_unknown_suffix(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("1,2\n")
    refused(tmp_path / "x.csv", r"unknown suffix '.csv', known are .npy, .fvecs")
    (tmp_path / "x").write_text("1,2\n")
    refused(tmp_path / "x", "unknown suffix ''")


def test_wrong_key(tmp_path: Path) -> None:
    for name in ("npz", "hdf5", "parquet, list", "safetensors"):
        path = FORMATS[name][0](tmp_path, X)
        refused(f"{path}:nope", r"no array named 'nope'; it holds \w+")
    refused(f"{npy(tmp_path, X)}:key", "holds one array and takes no key")


def test_wrong_shape(tmp_path: Path) -> None:
    for x in (X[0], X[None], np.float32(1)):
        refused(npy(tmp_path, x), "must have two dimensions")
        refused(np.asarray(x), "must have two dimensions")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["train"] = X[0]
        file["null"] = h5py.Empty("f4")
        file.create_group("group")
    refused(tmp_path / "x.h5", r"x.h5:train must have two dimensions \(rows, d\), got shape \(5,\)")
    refused(f"{tmp_path}/x.h5:null", "must have two dimensions")
    refused(f"{tmp_path}/x.h5:group", "no array named 'group'")
    pq.write_table(pa.table({"a": [1.0, 2.0]}), tmp_path / "x.parquet")
    refused(f"{tmp_path}/x.parquet:a", "must be a column of lists of numbers, got double")
    refused(tmp_path / "x.parquet", "needs a key")


@pytest.mark.parametrize("dtype", ["complex64", "int64", "uint16", "bool", "U3", "datetime64[s]", "V2"])
def test_wrong_element_type(tmp_path: Path, dtype: str) -> None:
    x = np.zeros((3, 2), dtype)
    refused(x, "must be one of float64, float32")
    refused(npy(tmp_path, x), "must be one of float64, float32")
    np.savez_compressed(tmp_path / "x.npz", x)
    refused(tmp_path / "x.npz", "must be one of float64, float32")


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64, torch.bool])
def test_wrong_tensor_type(dtype: Any) -> None:
    refused(torch.zeros((3, 2), dtype=dtype), "must be one of float64, float32")


def test_python_objects_are_never_loaded(tmp_path: Path) -> None:
    x = np.array([[{}, 1]], dtype=object)
    refused(x, "holds Python objects")
    np.save(tmp_path / "x.npy", x, allow_pickle=True)
    refused(tmp_path / "x.npy", "holds Python objects")
    np.savez(tmp_path / "x.npz", x)
    refused(tmp_path / "x.npz", "holds Python objects")


@pytest.mark.parametrize("x", [[[1.0, 2.0]], 5, None, b"x.npy"])
def test_not_embeddings_at_all(x: Any) -> None:
    refused(x, "must be a path, a NumPy array or a torch tensor")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("metric", ["ip", "cosine", "l2"])
def test_nan_and_infinity_name_the_row(tmp_path: Path, bad: float, metric: str) -> None:
    x = X.copy()
    x[[17, 18], 2] = bad
    for writer in (npy, hdf5, parquet_list, vecs(".fvecs")):
        path = writer(tmp_path, x)
        refused(path, "row 17 holds NaN or infinity", metric=metric)
        with pytest.raises(InvalidInput, match="row 18 holds"):
            open_source(path, metric=metric).take(np.array([3, 18, 17]))


def test_two_infinities_that_cancel_are_found() -> None:
    x = X.copy()
    x[5, :2] = np.inf, -np.inf
    refused(x, "row 5 holds NaN or infinity")


def test_float64_beyond_float32_is_infinity() -> None:
    x = X.astype(np.float64)
    x[9, 0] = 1e300
    refused(x, "row 9 holds NaN or infinity")


def test_large_and_small_finite_values_pass() -> None:
    x = np.array([[3e38, -3e38], [1e-44, 0]], np.float32)
    got = next(open_source(x).blocks()).rows
    np.testing.assert_allclose(got, [[0.5**0.5, -(0.5**0.5)], [1, 0]], rtol=1e-6)


def test_zero_vectors_only_under_cosine() -> None:
    x = X.copy()
    x[11] = 0
    refused(x, "row 11 is a zero vector", metric="cosine")
    with pytest.raises(InvalidInput, match="row 11 is a zero vector"):
        open_source(x).take(np.array([2, 11]))
    for metric in ("ip", "l2"):
        assert sum(len(block.rows) for block in open_source(x, metric=metric).blocks()) == 23


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in ("folder", "glob")])
@pytest.mark.parametrize("change", [-1, -7, 1, 5])
def test_truncated_and_oversized(tmp_path: Path, name: str, change: int) -> None:
    writer, dtypes = FORMATS[name]
    path = writer(tmp_path, table(dtypes[0]))
    file = Path(path) if Path(path).exists() else Path(path.rpartition(":")[0])
    data = file.read_bytes()
    file.write_bytes(data[:change] if change < 0 else data + b"\0" * change)
    if change > 0 and file.suffix in (".h5", ".hdf5", ".npz"):
        return  # trailing bytes are legal there
    refused(path, str(file))


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in ("folder", "glob")])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_is_refused_or_harmless(name: str, data: st.DataObject, tmp_path_factory: Any) -> None:
    """Overwritten bytes give our exception or numbers, never another exception."""
    writer, dtypes = FORMATS[name]
    path = writer(tmp_path_factory.mktemp("t"), table(dtypes[0]))
    file = Path(path) if Path(path).exists() else Path(path.rpartition(":")[0])
    content = bytearray(file.read_bytes())
    at = data.draw(st.integers(0, min(len(content), 1200) - 1) | st.integers(0, len(content) - 1))
    patch = data.draw(st.binary(min_size=1, max_size=8))
    content[at : at + len(patch)] = patch
    file.write_bytes(content)
    try:
        src = open_source(path, metric="ip")
        if src.n * src.dim < 10**6:
            src.take(np.array([0, src.n - 1]))
            for _ in src.blocks(7):
                pass
    except InvalidInput as error:
        assert "\n" not in str(error)


def test_bin_header_must_fit_exactly(tmp_path: Path) -> None:
    (tmp_path / "x.fbin").write_bytes(struct.pack("<II", 2**32 - 1, 2**32 - 1) + b"\0" * 64)
    refused(tmp_path / "x.fbin", "truncated: its header says 4294967295 x 4294967295 float32")
    (tmp_path / "x.u8bin").write_bytes(struct.pack("<II", 3, 4) + b"\1" * 13)
    refused(tmp_path / "x.u8bin", "too long: its header says 3 x 4 uint8, which takes 20 bytes, got 21")


def test_vecs_of_mixed_dimension(tmp_path: Path) -> None:
    path = Path(vecs(".ivecs")(tmp_path, table("int32")))
    content = bytearray(path.read_bytes())
    content[24 * 9 : 24 * 9 + 4] = struct.pack("<i", 6)
    path.write_bytes(content)
    refused(path, "row 9 has dimension 6, row 0 has 5", metric="ip")
    with pytest.raises(InvalidInput, match="row 9 has dimension 6"):
        open_source(path).take(np.array([1, 9]))


def test_parquet_lists(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    for column, message in (
        ([[1.0, 2.0], [3.0]], "row 1 must be a list of 2 numbers, got 1 numbers"),
        ([[1.0, 2.0]] * 9 + [None], "row 9 must be a list of 2 numbers, got null"),
        ([[1.0, 2.0]] * 5 + [[1.0, None]], "row 5 holds a null"),
        ([[], [1.0]], "row 0 is null or an empty list"),
        ([None, [1.0]], "row 0 is null or an empty list"),
        ([["a", "b"]], "must be a column of lists of numbers, got list<.*string>"),
        ([[1, 2]], "must be one of float64, .* got int64"),
    ):
        pq.write_table(pa.table({"e": column}), path, row_group_size=3)
        refused(path, message)
    column = pa.FixedSizeListArray.from_arrays(pa.array(X.ravel()), 5).take(pa.array([0, 1, None, 3]))
    pq.write_table(pa.table({"e": column}), path)
    refused(path, "row 2 must be a list of 5 numbers, got null")


def test_shards(tmp_path: Path) -> None:
    refused(tmp_path, "holds no shards")
    np.save(tmp_path / "a.npy", X)
    np.save(tmp_path / "b.npy", X[:, :4])
    refused(tmp_path, "shard .*b.npy has rows of 4 float32, .*a.npy of 5 float32")
    np.save(tmp_path / "b.npy", X.astype(np.int8))
    refused(tmp_path, "shard .*b.npy has rows of 5 int8")
    np.save(tmp_path / "b.npy", X[0])
    refused(tmp_path, "b.npy must have two dimensions")
    np.savez(tmp_path / "b.npz", X)
    refused(tmp_path, "must all be of one suffix, got a.npy and b.npz")


def test_shards_may_differ_in_width_and_report_the_widest(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", X.astype(np.float16))
    np.save(tmp_path / "b.npy", X)
    (tmp_path / ".hidden.npy").write_bytes(b"x")
    assert open_source(tmp_path).dtype == "float32"


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = parquet_list(tmp_path, X)
    real = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.delitem(sys.modules, "pyarrow.parquet")
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependency, match=r"pip install 'vqdistill\[parquet\]'"):
        open_source(path)
