"""Rows for the tests of models: a part of the shipped sample, and well separated clusters."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import h5py
import numba
import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from vqdistill.kernels.units import unit_rows
from vqdistill.types import F32Rows

SAMPLE = Path(__file__).parent.parent.parent / "data" / "debian-sample.h5"


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Arrays here are too small to share, and other test processes run beside."""
    before = numba.get_num_threads()
    numba.set_num_threads(1)
    with threadpool_limits(1):
        yield
    numba.set_num_threads(before)


@pytest.fixture(scope="session")
def sample() -> F32Rows:
    """1,500 unit rows of real embeddings, 384 dimensions."""
    with h5py.File(SAMPLE) as file:
        return unit_rows(file["train"][:1500].astype(np.float32), "train")


@pytest.fixture(scope="session")
def clustered() -> F32Rows:
    """1,200 rows around 24 centres in 20 dimensions, off the origin; clusters of unequal size and width."""
    rng = np.random.default_rng(0)
    centres, width = 3 * rng.standard_normal((24, 20)), rng.uniform(0.3, 1.2, 24)
    which = rng.choice(24, 1200, p=rng.dirichlet(np.full(24, 2)))
    x = centres[which] + width[which, None] * rng.standard_normal((1200, 20)) + 5
    return np.asarray(x, dtype=np.float32)
