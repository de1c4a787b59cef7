"""Memory of an index in a process of its own: `python -m vqdistill.evaluate.memory INDEX QUERIES.npy OPTIONS`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from vqdistill.errors import VqdistillError
from vqdistill.types import F32Rows

_QUERIES = 1000


def rss_delta_bytes(index: str | Path, queries: F32Rows, options: dict[str, Any] | None = None) -> int:
    """Growth of the resident set of a fresh process that opens the index and answers 1,000 queries by code only.

    Parameters
    ----------
    index : directory of the index
    queries : (q, d) float32, repeated up to 1,000
    options : of the search, JSON-ready; None = the defaults of the index

    Returns
    -------
    int
        Bytes, all pages counted (VmRSS), from after the imports to after the last answer.

    Raises
    ------
    VqdistillError
        If the process fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "queries.npy")
        np.save(path, np.resize(queries, (_QUERIES, queries.shape[1])))
        command = [sys.executable, "-m", __name__, str(index), path, json.dumps(options or {})]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise VqdistillError(f"measuring memory of {index} failed: {done.stderr.strip().splitlines()[-1:]}")
    return int(json.loads(done.stdout)["rss_delta_bytes"])


def _rss() -> int:
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmRSS"))


def _measure(path: str, queries_path: str, options: dict[str, Any]) -> None:
    from vqdistill import searcher

    queries = np.load(queries_path)
    before = _rss()
    index = searcher.open(path)
    index.search(queries, k=10, refine=0, **options)
    after = _rss()  # while the index is still held
    loaded = sorted({"torch", "numba", "faiss", "sklearn", "h5py"} & set(sys.modules))
    json.dump({"rss_delta_bytes": after - before, "heavy_imports": loaded}, sys.stdout)


if __name__ == "__main__":
    _measure(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
