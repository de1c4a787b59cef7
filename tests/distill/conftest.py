"""A small corpus with learn queries that are not distributed like its rows, for which there is something to distil."""

from __future__ import annotations

from collections.abc import Iterator

import numba
import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from tests.distill.support import DEPTH, Task
from vqdistill.data.sources import open_source
from vqdistill.data.teacher import ExactTeacher, query_rows
from vqdistill.types import Metric


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Arrays here are too small to share, and other test processes run beside."""
    before = numba.get_num_threads()
    numba.set_num_threads(1)
    with threadpool_limits(1):
        yield
    numba.set_num_threads(before)


@pytest.fixture(scope="session")
def tasks() -> dict[Metric, Task]:
    """600 rows in 16 dimensions, 150 queries that vary along few of them, and the exact teacher's lists."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((600, 16)) + 2 * rng.standard_normal((12, 16))[rng.integers(0, 12, 600)] + 0.3
    weights = np.linspace(2, 0.1, 16)
    q = weights * (x[rng.choice(600, 150, replace=False)] + 0.7 * rng.standard_normal((150, 16)))
    made = {}
    for metric in Metric:
        src = open_source(x.astype(np.float32), metric=metric)
        queries = query_rows(q.astype(np.float32), src)
        made[metric] = Task(src, queries, ExactTeacher(src).relevance(queries, DEPTH))
    return made
