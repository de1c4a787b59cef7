"""Harder encoders made out of an easy one: a common mean, or directions of very different spread."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from vqdistill.data.exact import exact_top
from vqdistill.data.sources import open_source
from vqdistill.types import Block

F32 = npt.NDArray[np.float32]
Spacing = Callable[[float, float, int], npt.NDArray[np.float64]]
"""First, last and number of the singular values -> all of them."""
VARIANTS = ("mean", "anisotropic", "anisotropic-geometric")
"""Singular values of the map fall from 1 in equal steps, or by equal factors. The latter leaves few directions, and
codes have less to do: R10@100 of OPQ at 16 B on debian's learn queries is .973 there, .931 with equal steps, and .906
without a map."""
MEAN_NORM = 2.0
"""Norm of the constant added to unit vectors; documents and queries have one each."""
CONDITION = 100.0
"""Largest over smallest singular value of the map that documents and queries share."""
DEPTH = 100
"""Exact neighbours written for each test query."""
_PARTS = ("train", "test", "learn_queries")


def write_variant(dataset: Path, variant: str, out: Path, seed: int = 0, threads: int = 1) -> None:
    """Write a variant of a dataset in the ann-benchmarks layout: changed unit rows, and the truth of their cosines.

    Parameters
    ----------
    dataset : HDF5 file with `train`, `test` and `learn_queries`
    variant : one of VARIANTS
    out : HDF5 file to make, with these parts as unit float32 rows, and `neighbors` and `distances` (1 - cosine) of
        `test`. Learn queries have no neighbours in it: compile searches them exactly itself.
    seed : of the constants or the map
    """
    parts = read_parts(dataset)
    rng = np.random.default_rng(seed)
    changed = {name: unit(rows) for name, rows in CHANGES[variant](parts, rng).items()}
    train, test = changed["train"], changed["test"]
    found = exact_top(test, [Block(0, train)], len(train), DEPTH, threads=threads)
    part = out.with_name(f"{out.name}.part")
    with h5py.File(part, "w") as file:
        file.attrs["distance"] = "angular"
        for name, rows in changed.items():
            file[name] = rows
        file["neighbors"] = found.docs.reshape(len(test), -1).astype(np.int32)
        file["distances"] = 1 - found.scores.reshape(len(test), -1)
    part.replace(out)


def read_parts(dataset: Path) -> dict[str, F32]:
    """Return documents, test and learn queries as unit float32 rows."""
    src = open_source(str(dataset), metric="cosine")
    test, learn = src.companion("test"), src.companion("learn_queries")
    if test is None or learn is None:
        raise SystemExit(f"{dataset} needs test and learn_queries")
    return {name: part.take(np.arange(part.n)) for name, part in zip(_PARTS, (src, test, learn), strict=True)}


def with_mean(parts: dict[str, F32], rng: np.random.Generator) -> dict[str, F32]:
    """Add a constant of norm MEAN_NORM to documents, and another one to all queries."""
    d = parts["train"].shape[1]
    docs, queries = (MEAN_NORM * unit(rng.standard_normal((1, d), dtype=np.float32)) for _ in range(2))
    return {name: rows + (docs if name == "train" else queries) for name, rows in parts.items()}


def anisotropic(parts: dict[str, F32], rng: np.random.Generator, spaced: Spacing) -> dict[str, F32]:
    """Map documents and queries by one random matrix of condition number CONDITION."""
    d = parts["train"].shape[1]
    a = random_map(spaced(1, 1 / CONDITION, d), rng)
    return {name: rows @ a for name, rows in parts.items()}


def random_map(singular_values: npt.NDArray[np.float64], rng: np.random.Generator) -> F32:
    """Return a (d, d) matrix of random directions with the (d,) singular values given."""
    d = len(singular_values)
    left, right = (np.linalg.qr(rng.standard_normal((d, d)))[0] for _ in range(2))
    return np.asarray((left * singular_values) @ right, dtype=np.float32)


def unit(rows: npt.NDArray[Any]) -> F32:
    """Scale rows to length 1."""
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


CHANGES: dict[str, Callable[[dict[str, F32], np.random.Generator], dict[str, F32]]] = {
    "mean": with_mean,
    "anisotropic": partial(anisotropic, spaced=np.linspace),
    "anisotropic-geometric": partial(anisotropic, spaced=np.geomspace),
}
