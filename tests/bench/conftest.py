"""A prepared dataset that the benchmark's tests share."""

from __future__ import annotations

import numpy as np
import pytest

from tests.bench.support import TEST, arrays, write_h5
from vqdistill.bench.datasets import Dataset, prepare


@pytest.fixture(scope="package")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    place = tmp_path_factory.mktemp("bench")
    parts = arrays()
    labels = np.argmax(parts["test"] @ parts["train"].T, axis=1)
    labels[TEST // 2 :] = -1
    path = write_h5(place / "small.h5", **parts, test_labels=labels)
    return prepare(str(path), place / "runs")
