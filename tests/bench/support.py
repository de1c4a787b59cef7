"""Small data and index-like objects of the benchmark's tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from vqdistill.bench.systems.base import Found, Setting

N, D, TEST, LEARN = 600, 32, 60, 200


def unit(rows: Any) -> npt.NDArray[np.float32]:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def arrays(seed: int = 0) -> dict[str, npt.NDArray[np.float32]]:
    """Documents in clusters, and queries near documents."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((20, D))
    docs = centres[rng.integers(0, 20, N)] + 0.5 * rng.standard_normal((N, D))

    def near(count: int) -> Any:
        return docs[rng.integers(0, N, count)] + 0.3 * rng.standard_normal((count, D))

    return {"train": unit(docs), "test": unit(near(TEST)), "learn_queries": unit(near(LEARN))}


def write_h5(path: Path, **parts: Any) -> Path:
    with h5py.File(path, "w") as file:
        file.attrs["distance"] = "angular"
        for name, array in parts.items():
            file[name] = array
    return path


class Exact:
    """An index that finds everything, and lies where it is told to."""

    bytes = {"rows": 4 * N * D}

    def __init__(self, docs: npt.NDArray[np.float32], lie: str = "") -> None:
        self._docs, self._lie = docs, lie

    def ladders(self) -> list[list[Setting]]:
        return [[{"effort": 1}, {"effort": 2}]]

    def search(self, queries: npt.NDArray[np.float32], k: int, setting: Setting) -> Found:
        every = queries @ self._docs.T
        ids = np.argsort(-every, axis=1, kind="stable")[:, : k + 5]
        scores = np.take_along_axis(every, ids, axis=1)
        if setting["effort"] == 1:
            ids[:, k // 2 :] = N - 1 - ids[:, k // 2 :]
            scores = np.take_along_axis(every, ids, axis=1)
        if self._lie == "duplicates":
            ids[:, 1], scores[:, 1] = ids[:, 0], scores[:, 0]
        elif self._lie == "scores":
            scores[:, 0] += 0.5
        elif self._lie == "padding":
            ids[:, k - 1] = -1
        elif self._lie == "unknown":
            ids[:, 0] += N
        kept = k + 5 if self._lie == "unasked" else k
        return Found(scores[:, :kept].astype(np.float32), ids[:, :kept].astype(np.int64), None)
