"""The demo's script on the sample dataset, and the sample itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from vqdistill.evaluate.metrics import mrr_at_k

ROOT = Path(__file__).parent.parent
SAMPLE = ROOT / "data" / "debian-sample.h5"


def test_the_sample_is_small_and_complete() -> None:
    assert SAMPLE.stat().st_size <= 5_000_000
    with h5py.File(SAMPLE) as file:
        n, d = file["train"].shape
        test, learn = len(file["test"]), len(file["learn_queries"])
        assert file["neighbors"].shape == file["distances"].shape == (test, 100)
        assert len(file["test_labels"]) == test
        assert len(file["learn_labels"]) == learn
        assert file["learn_queries"].shape == (learn, d)
        assert 0 <= file["test_labels"][:].min() <= file["test_labels"][:].max() < n


def test_the_neighbours_of_the_sample_are_exact() -> None:
    with h5py.File(SAMPLE) as file:
        train, test = (file[name][:].astype(np.float64) for name in ("train", "test"))
        neighbors, distances = file["neighbors"][:], file["distances"][:]
    train /= np.linalg.norm(train, axis=1, keepdims=True)
    test /= np.linalg.norm(test, axis=1, keepdims=True)
    exact = np.sort(1 - test @ train.T, axis=1)[:, :100]
    assert np.allclose(distances, exact, atol=1e-6)
    assert np.allclose(1 - np.einsum("qd,qkd->qk", test, train[neighbors]), exact, atol=1e-6)


def test_labels_belong_to_their_queries() -> None:
    with h5py.File(SAMPLE) as file:
        assert mrr_at_k(file["neighbors"][:], file["test_labels"][:], 10).mean() > 0.7


@pytest.mark.slow
def test_the_demo_prints_its_table(tmp_path: Path) -> None:
    command = [sys.executable, "bench/demo.py", str(SAMPLE), str(tmp_path / "demo.vqd"), "--no-distill"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    wanted = (
        "bytes in memory",
        "bytes on disk",
        "recall@10, codes alone",
        "recall@10, verified",
        "queries/s",
        "MRR@10, index",
    )
    assert all(name in done.stdout for name in wanted)
