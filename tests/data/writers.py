"""Writes one table of numbers in every format that can be read."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.numpy
import safetensors.torch
import torch


def npy(path: Path, x: Any) -> str:
    np.save(path / "x.npy", x)
    return str(path / "x.npy")


def npy_fortran(path: Path, x: Any) -> str:
    return npy(path, np.asfortranarray(x))


def npy_big_endian(path: Path, x: Any) -> str:
    return npy(path, x.astype(x.dtype.newbyteorder(">")))


def npz(path: Path, x: Any) -> str:
    np.savez(path / "x.npz", other=np.arange(3), anything=x)
    return str(path / "x.npz")


def npz_compressed(path: Path, x: Any) -> str:
    np.savez_compressed(path / "x.npz", other=np.zeros((2, 2)), e=x)
    return f"{path}/x.npz:e"


def hdf5(path: Path, x: Any) -> str:
    with h5py.File(path / "x.h5", "w") as file:
        file["train"] = x
        file["test"] = x[:2]
    return str(path / "x.h5")


def hdf5_chunked(path: Path, x: Any) -> str:
    with h5py.File(path / "x.hdf5", "w") as file:
        file.create_dataset("deep/set", data=x, chunks=(min(6, len(x)), 1), compression="gzip")
    return f"{path}/x.hdf5:deep/set"


def parquet_list(path: Path, x: Any) -> str:
    pq.write_table(pa.table({"id": range(len(x)), "embedding": list(x)}), path / "x.parquet", row_group_size=8)
    return str(path / "x.parquet")


def parquet_fixed(path: Path, x: Any) -> str:
    column = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), x.shape[1])
    pq.write_table(pa.table({"v:1": column}), path / "x.parquet", row_group_size=5)
    return str(path / "x.parquet")


def safetensors_numpy(path: Path, x: Any) -> str:
    safetensors.numpy.save_file({"a": np.zeros(3), "emb": x}, path / "x.safetensors", metadata={"k": "v"})
    return str(path / "x.safetensors")


def safetensors_bfloat16(path: Path, x: Any) -> str:
    safetensors.torch.save_file({"only": torch.tensor(x).bfloat16()}, path / "x.safetensors")
    return f"{path}/x.safetensors:only"


def folder(path: Path, x: Any) -> str:
    (path / "shards").mkdir()
    third = len(x) // 3
    for i, part in enumerate((x[:third], x[third : third + 1], x[third + 1 :])):
        np.save(path / f"shards/{i:02}.npy", part)
    (path / "shards/README.md").write_text("not a shard")
    return str(path / "shards")


def glob_of_parquet(path: Path, x: Any) -> str:
    for i, part in enumerate((x[:4], x[4:])):
        (path / f"part-{i}").mkdir()
        parquet_list(path / f"part-{i}", part)
    return f"{path}/part-*/x.parquet:embedding"


def bins(suffix: str) -> Callable[[Path, Any], str]:
    def write(path: Path, x: Any) -> str:
        (path / f"x{suffix}").write_bytes(struct.pack("<II", *x.shape) + x.tobytes())
        return f"{path}/x{suffix}"

    return write


def vecs(suffix: str) -> Callable[[Path, Any], str]:
    def write(path: Path, x: Any) -> str:
        head = struct.pack("<i", x.shape[1])
        (path / f"x{suffix}").write_bytes(b"".join(head + row.tobytes() for row in x))
        return f"{path}/x{suffix}"

    return write


Any_float = ("float64", "float32", "float16")
FORMATS: dict[str, tuple[Callable[[Path, Any], str], tuple[str, ...]]] = {
    "npy": (npy, (*Any_float, "int8", "uint8", "int32")),
    "npy, Fortran order": (npy_fortran, ("float32",)),
    "npy, big endian": (npy_big_endian, ("float32", "float16")),
    "npz": (npz, ("float32", "int8")),
    "npz, compressed": (npz_compressed, ("float32", "uint8")),
    "hdf5": (hdf5, (*Any_float, "int8", "uint8")),
    "hdf5, chunked": (hdf5_chunked, ("float16", "int8")),
    "parquet, list": (parquet_list, (*Any_float, "int8")),
    "parquet, fixed-size list": (parquet_fixed, (*Any_float, "uint8")),
    "safetensors": (safetensors_numpy, (*Any_float, "int8", "uint8")),
    "safetensors, bfloat16": (safetensors_bfloat16, ("float32",)),
    "folder": (folder, ("float32", "float16")),
    "glob": (glob_of_parquet, ("float32",)),
    "fbin": (bins(".fbin"), ("float32",)),
    "u8bin": (bins(".u8bin"), ("uint8",)),
    "i8bin": (bins(".i8bin"), ("int8",)),
    "ibin": (bins(".ibin"), ("int32",)),
    "fvecs": (vecs(".fvecs"), ("float32",)),
    "bvecs": (vecs(".bvecs"), ("uint8",)),
    "ivecs": (vecs(".ivecs"), ("int32",)),
}
"""Name -> writer and element types."""


def table(dtype: str, n: int = 23, dim: int = 5, seed: int = 0) -> Any:
    """Rows without a zero vector, exact in bfloat16."""
    values = np.random.default_rng(seed).integers(1, 100, (n, dim))
    if np.dtype(dtype).kind != "u":
        values[::2] *= -1
    return (values / (4 if np.dtype(dtype).kind == "f" else 1)).astype(dtype)
