"""Threads of training: as many as asked for, and the same bytes for any number.

BLAS, LAPACK and torch round differently on several threads. Training therefore keeps each of them on one, and gets its
parallelism from Numba loops over rows and from `for_tiles`, whose tiles do not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numba
import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

_TILE_ROWS = 2048


@contextmanager
def one_library_thread() -> Iterator[None]:
    """Keep BLAS, LAPACK and OpenMP (torch) on one thread each; also a decorator."""
    with threadpool_limits(1):
        yield


@contextmanager
def training_threads(threads: int) -> Iterator[None]:
    """Let Numba loops and `matmul_t` use this many threads, and libraries one each."""
    before = numba.get_num_threads()
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
    try:
        with one_library_thread():
            yield
    finally:
        numba.set_num_threads(before)


def matmul_t(
    a: npt.NDArray[np.float32], b: npt.NDArray[np.float32], out: npt.NDArray[np.float32] | None = None
) -> npt.NDArray[np.float32]:
    """Return a (n, d) @ b (k, d).T as float32, in tiles of rows over Numba's number of threads.

    Parameters
    ----------
    out : (n, k) float32 that the product is written to, may be `a` itself if k = d; None = a new array
    """
    product = np.empty((len(a), len(b)), np.float32) if out is None else out
    for_tiles(len(a), lambda tile: np.matmul(a[tile], b.T, out=product[tile]))
    return product


def for_tiles(n: int, work: Callable[[slice], object]) -> None:
    """Call `work` with tiles of rows 0..n, in Numba's number of threads; the tiles do not depend on it."""
    tiles = [slice(start, start + _TILE_ROWS) for start in range(0, n, _TILE_ROWS)]
    threads = min(numba.get_num_threads(), len(tiles))
    if threads <= 1:
        for tile in tiles:
            work(tile)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, tiles))
