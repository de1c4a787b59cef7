"""Compiles a file of real rows, tiled with small noise, under a hard cap on memory; one a tenth of its size beside it.

For each, the peak resident memory of the compiler, its time per row, and whether the index holds every row once.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from measuring import markdown, run, stored

import vqdistill as vqd
from vqdistill.index.verify import verify

RESULTS = Path(__file__).parent / "results" / "out_of_core.json"
NOISE = 0.1
"""Length of the noise of a row against the row's own."""
QUERIES = 1024
"""Learn queries: exact teaching is not what is measured."""
BLOCK_ROWS = 16_384


def make(dataset: str, path: Path, n: int) -> None:
    """Write n rows to a .npy file: those of a dataset over and over, each with noise of its own."""
    real = np.concatenate([block.rows for block in vqd.open_source(dataset).blocks()])
    rng, d = np.random.default_rng(0), real.shape[1]
    with path.open("wb") as out:
        np.lib.format.write_array_header_1_0(out, {"descr": "<f4", "fortran_order": False, "shape": (n, d)})
        for at in range(0, n, BLOCK_ROWS):
            rows = np.take(real, np.arange(at, min(n, at + BLOCK_ROWS)), axis=0, mode="wrap")
            noise = rng.standard_normal(rows.shape, dtype=np.float32)
            (rows + noise * np.float32(NOISE / np.sqrt(d))).tofile(out)


def whole(index: Path, n: int) -> dict[str, Any]:
    """Return what is wrong with an index of n rows: damage, and rows that are missing or there twice."""
    with vqd.open_index(index) as reader:
        rows = np.fromfile(index / reader.manifest.segments["rows"].file, "<i8", n, offset=4096)
    return {"problems": verify(index), "every_row_once": bool(np.array_equal(np.sort(rows), np.arange(n)))}


def measure(dataset: str, n: int, place: Path, options: list[str]) -> dict[str, Any]:
    """Make the file, compile it, check the index, remove both."""
    path, queries, index = place / f"rows-{n}.npy", place / "queries.npy", place / f"index-{n}"
    # In a process of its own: what this one had in memory would count for the peak of its children.
    maker = multiprocessing.get_context("spawn").Process(target=make, args=(dataset, path, n))
    maker.start()
    maker.join()
    learn = vqd.open_source(dataset).companion("learn_queries")
    assert learn is not None
    np.save(queries, learn.take(np.arange(min(learn.n, QUERIES))))
    file_bytes = path.stat().st_size
    result = run("compile", str(path), "-o", str(index), "--queries", str(queries), *options)
    del result["output"]["plan"]
    return {"n": n, "file_bytes": file_bytes, "options": options, **result, **whole(index, n)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", help="HDF5 file with rows and learn queries")
    parser.add_argument("--rows", type=int, default=2_800_000)
    parser.add_argument("--build-ram", default="1GiB")
    parser.add_argument("--ram", default="8B/vec")
    parser.add_argument("--place", type=Path, help="folder for the files; default: a temporary one")
    given = parser.parse_args()
    options = ["--build-ram", given.build_ram, "--ram", given.ram]

    def both() -> dict[str, Any]:
        runs = []
        for n in (given.rows // 10, given.rows):
            with tempfile.TemporaryDirectory(dir=given.place) as place:
                runs.append(measure(given.dataset, n, Path(place), options))
        return {"runs": runs}

    runs = stored(RESULTS, both)["runs"]
    rows = [
        [f"{r['n']:,}", f"{r['file_bytes'] / 2**30:.2f} GiB", f"{r['peak_rss_bytes'] / 2**20:,.0f} MiB"]
        + [f"{r['seconds']:,.0f} s", f"{1e6 * r['seconds'] / r['n']:,.0f} us", str(r["every_row_once"])]
        for r in runs
    ]
    print(markdown(["rows", "file", "peak RSS", "compile", "per row", "every row once"], rows))


if __name__ == "__main__":
    main()
