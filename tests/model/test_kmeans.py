"""K-means: as good as faiss, the same for the same seed, and sound on awkward data."""

from __future__ import annotations

import faiss
import numpy as np
import pytest

from vqdistill.kernels import threads
from vqdistill.model import kmeans as module
from vqdistill.model.kmeans import kmeans, nearest
from vqdistill.types import F32Rows


def inertia(x: F32Rows, centroids: F32Rows) -> float:
    distances = ((x[:, None].astype(np.float64) - centroids) ** 2).sum(axis=2)
    return float(distances.min(axis=1).sum())


@pytest.mark.parametrize("nlist", [4, 40])
def test_as_good_as_faiss(clustered: F32Rows, nlist: int) -> None:
    """Single runs scatter by several per cent, so means over seeds are compared."""
    ours, theirs = [], []
    for seed in range(5):
        ours.append(inertia(clustered, kmeans(clustered, nlist, seed=seed, iterations=10)))
        other = faiss.Kmeans(clustered.shape[1], nlist, niter=10, seed=seed, min_points_per_centroid=1)
        other.train(clustered)
        theirs.append(inertia(clustered, other.centroids))
    assert np.mean(ours) <= 1.03 * np.mean(theirs)


def test_as_good_as_faiss_on_real_rows(sample: F32Rows) -> None:
    other = faiss.Kmeans(sample.shape[1], 16, niter=10, seed=1)
    other.train(sample)
    found = kmeans(sample, 16, seed=0)
    own, wanted = (((sample - c[nearest(sample, c)]) ** 2).sum() for c in (found, other.centroids))
    assert own <= 1.03 * wanted


def test_iterations_lower_the_inertia(clustered: F32Rows) -> None:
    steps = [inertia(clustered, kmeans(clustered, 16, seed=3, iterations=i)) for i in (0, 1, 2, 5, 10)]
    assert steps == sorted(steps, reverse=True)
    assert steps[-1] < 0.8 * steps[0]


def test_seed_decides(clustered: F32Rows) -> None:
    first, again, other = (kmeans(clustered, 16, seed=seed) for seed in (1, 1, 2))
    assert first.dtype == np.float32 and first.flags.c_contiguous
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_input_stays_as_it_is(clustered: F32Rows) -> None:
    before = clustered.copy()
    kmeans(clustered, 16, seed=0)
    assert np.array_equal(clustered, before)


def test_training_on_a_sample_of_the_rows(clustered: F32Rows) -> None:
    some = kmeans(clustered, 8, seed=0, rows_per_list=50)
    assert inertia(clustered, some) < 1.2 * inertia(clustered, kmeans(clustered, 8, seed=0))


def test_no_list_stays_empty() -> None:
    """Two distant heaps, one of them a single row: most starting rows lie in the large heap, and many are equal."""
    rng = np.random.default_rng(0)
    x = np.repeat(rng.standard_normal((40, 6)).astype(np.float32), 20, axis=0)
    x[-1] += 100
    centroids = kmeans(x, 24, seed=0)
    assert np.isfinite(centroids).all()
    assert (np.bincount(nearest(x, centroids), minlength=24) > 0).all()


def test_an_empty_list_takes_half_of_the_fullest() -> None:
    centroids = np.array([[0, 0], [8, 4], [1, 1]], np.float32)
    counts = np.array([0, 7, 1])
    module._refill(centroids, counts, np.random.default_rng(0))
    assert counts.tolist() == [3, 4, 1]
    np.testing.assert_allclose(centroids[:2].mean(axis=0), [8, 4], atol=1e-6)
    np.testing.assert_allclose(centroids[0], [8, 4], rtol=0.01)
    assert not np.array_equal(centroids[0], centroids[1])
    assert centroids[2].tolist() == [1, 1]


def test_fewer_rows_than_lists(clustered: F32Rows) -> None:
    x = clustered[:5]
    centroids = kmeans(x, 12, seed=0)
    assert centroids.shape == (12, 20) and np.isfinite(centroids).all()
    assert inertia(x, centroids) < 1e-6 * float((x**2).sum())


def test_one_row() -> None:
    assert kmeans(np.array([[3, 4]], np.float32), 1, seed=0).tolist() == [[3, 4]]


@pytest.mark.parametrize("value", [0.0, 2.5])
def test_nothing_but_duplicates(value: float) -> None:
    x = np.full((100, 3), value, np.float32)
    centroids = kmeans(x, 7, seed=0)
    assert inertia(x, centroids) <= 1e-5 * float((x**2).sum())  # empty lists are split off by a small step


def test_nearest_against_distances(clustered: F32Rows) -> None:
    centroids = kmeans(clustered, 16, seed=0, iterations=2)
    lists = nearest(clustered, centroids)
    distances = ((clustered[:, None].astype(np.float64) - centroids) ** 2).sum(axis=2)
    assert lists.dtype == np.int32
    np.testing.assert_allclose(distances[np.arange(len(lists)), lists], distances.min(axis=1), rtol=1e-4)


def test_nearest_ties_go_to_the_lowest() -> None:
    centroids = np.array([[4, 4], [1, 0], [-1, 0], [1, 0]], np.float32)
    assert nearest(np.array([[0, 0], [1, 0], [0, 5]], np.float32), centroids).tolist() == [1, 1, 0]


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 24])
def test_nearest_in_pieces(monkeypatch: pytest.MonkeyPatch, clustered: F32Rows, n: int) -> None:
    want = nearest(clustered[:24], clustered[24:40])[:n]
    monkeypatch.setattr(threads, "_TILE_ROWS", 8)
    assert np.array_equal(nearest(clustered[:n], clustered[24:40]), want)
