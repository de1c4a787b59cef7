"""A search in halves over parts of the rows gives what one engine over all of them gives; odd arguments are refused."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vqdistill.kernels import Engine, candidate_count, choose_results, merge_candidates, pack_codes

N, D, M, NLIST, Q = 500, 8, 4, 6, 9
RNG = np.random.default_rng(0)
X = RNG.standard_normal((N, D)).astype(np.float32)
LISTS = RNG.integers(0, NLIST, N)
CODES = RNG.integers(0, 16, (N, M)).astype(np.uint8)
QUERIES = RNG.standard_normal((Q, D)).astype(np.float32)
MODEL: dict[str, Any] = {
    "metric": "ip",
    "residual": True,
    "router": RNG.standard_normal((NLIST, D)).astype(np.float32),
    "coarse": RNG.standard_normal((NLIST, D)).astype(np.float32),
    "mean": np.zeros(D, np.float32),
    "rotation": np.eye(D, dtype=np.float32),
    "codewords": RNG.standard_normal((M, 16, D // M)).astype(np.float32),
    "dense_dtype": "f32",
}
PROBE = {"nprobe": 3, "threads": 1}
PLAN = ("offsets", "lists", "terms", "tables", "scales", "luts")


class Rows:
    """Some of the rows in list order, and their file."""

    def __init__(self, path: Path, rows: Any) -> None:
        self.order = rows[np.argsort(LISTS[rows], kind="stable")]
        self.offsets = np.searchsorted(LISTS[self.order], np.arange(NLIST + 1)).astype(np.int64)
        X[self.order].tofile(path)
        self.fd = os.open(path, os.O_RDONLY)
        self.packed = pack_codes(CODES[self.order])

    def engine(self, **options: Any) -> Engine:
        place: dict[str, Any] = {"list_offsets": self.offsets, "packed": self.packed, "dense_fd": self.fd}
        return Engine(**MODEL | place | options)


@pytest.fixture
def whole(tmp_path: Path) -> Iterator[Rows]:
    rows = Rows(tmp_path / "whole", np.arange(N))
    yield rows
    os.close(rows.fd)


@pytest.fixture
def halves(tmp_path: Path) -> Iterator[list[Rows]]:
    rows = [Rows(tmp_path / str(a), np.arange(a, b)) for a, b in ((0, 200), (200, N))]
    yield rows
    for each in rows:
        os.close(each.fd)


@pytest.mark.parametrize("stop", [{}, {"misses": 0.5, "error": 1.0}])
@pytest.mark.parametrize("refine", [0, 30])
def test_two_halves_are_one_search(whole: Rows, halves: list[Rows], refine: int, stop: dict[str, float]) -> None:
    k, stop = 5, stop if refine else {}
    wanted = whole.engine().search(QUERIES, k=k, refine=refine, **stop, **PROBE)
    sizes, count, found, engines = np.diff(whole.offsets), candidate_count(k, refine, N), [], []
    nothing = {"list_offsets": np.zeros(NLIST + 1, np.int64), "packed": np.empty((0, M // 2, 32), np.uint8)}
    planner = whole.engine(whole=sizes, dense_dtype="none", dense_fd=-1, **nothing)
    plan = dict(zip(PLAN, planner.plan(QUERIES, nprobe=3, rescore=not refine), strict=True))
    for number, rows in enumerate(halves):
        engines.append(rows.engine(whole=sizes))
        scores, rescored, positions, lists, _ = engines[-1].candidates(**plan, count=count, threads=1)
        before = whole.offsets[:-1] - rows.offsets[:-1] + number * np.diff(halves[0].offsets)
        found.append((scores, rescored, np.where(positions < 0, -1, positions + before[lists]), positions))
    origins, reads = merge_candidates([part[0] for part in found], [part[2] for part in found])
    code, ids = (np.take_along_axis(np.concatenate([part[at] for part in found], 1), origins, 1) for at in (0, 2))
    exact = [part[1] for part in found]
    if refine:
        given = zip(engines, found, reads.T, strict=True)
        exact = [
            engine.score(QUERIES, part[3], np.ascontiguousarray(many), threads=1)[0] for engine, part, many in given
        ]
        assert reads.sum(axis=1).tolist() == [count] * Q
    scores, results, read = choose_results(
        code, np.take_along_axis(np.concatenate(exact, 1), origins, 1), ids, k=k, **stop
    )
    assert np.array_equal(scores, wanted[0]) and np.array_equal(results, wanted[1])
    assert not refine or np.array_equal(read, wanted[2][:, 3])


def test_rows_may_lie_in_several_files(whole: Rows, halves: list[Rows]) -> None:
    wanted = whole.engine().search(QUERIES, k=7, refine=60, **PROBE)
    order = np.argsort(LISTS, kind="stable")
    assert np.array_equal(order, whole.order)
    for io in ("auto", "pread"):
        spread = [(rows.offsets, rows.fd, None) for rows in halves]
        found = whole.engine(spread=spread, dense_fd=-1, io=io).search(QUERIES, k=7, refine=60, **PROBE)
        assert np.array_equal(found[0], wanted[0]) and np.array_equal(found[1], wanted[1])


def test_odd_arguments_are_refused(whole: Rows, halves: list[Rows]) -> None:
    engine, zeros = whole.engine(), np.zeros((Q, 3), np.int64)
    plan = dict(zip(PLAN, engine.plan(QUERIES, nprobe=3, rescore=True), strict=True))

    def found(count: int = 5, **changes: Any) -> Any:
        return engine.candidates(**plan | changes, count=count, threads=1)

    calls: dict[str, Any] = {
        "files whose list_offsets add up": lambda: whole.engine(spread=[(halves[0].offsets, halves[0].fd, None)]),
        "spread must be .list_offsets, dense_fd": lambda: whole.engine(spread=[(halves[0].offsets,)]),
        "whole must be .nlist,. int64": lambda: whole.engine(whole=np.zeros(2, np.int64)),
        "count must be in 1": lambda: found(0),
        "offsets must be .q . 1,. int64 for residual codes, got None": lambda: found(offsets=None),
        "offsets must be rising from 0 to 27": lambda: found(offsets=plan["offsets"][::-1].copy()),
        "offsets must be .q . 1,. int64": lambda: found(offsets=plan["offsets"][1:].copy()),
        "lists must be in 0..5, got 6": lambda: found(lists=plan["lists"] + (plan["lists"] == 5)),
        "lists must be in 0..5, got -1": lambda: found(lists=plan["lists"] - (plan["lists"] == 0)),
        "terms must be .visits,. float32": lambda: found(terms=plan["terms"][1:].copy()),
        r"tables must be .q, m \* 16. uint8": lambda: found(tables=plan["tables"][:, 1:].copy()),
        "scales must be .q, 3. float64": lambda: found(scales=plan["scales"][1:].copy()),
        "luts must be of each query, or none": lambda: found(luts=plan["luts"][1:].copy()),
        "rescore": lambda: engine.plan(QUERIES, nprobe=3),
        "reads must be in 0..3, got 4": lambda: engine.score(QUERIES, zeros, np.full(Q, 4), threads=1),
        "positions must be in 0..499, got 500": lambda: engine.score(QUERIES, zeros + N, np.full(Q, 1), threads=1),
        "scores must be of a part or more": lambda: merge_candidates([], []),
        "ids must be of as many parts": lambda: merge_candidates([np.zeros((1, 2), np.float32)], []),
        "exact must be": lambda: choose_results(np.zeros((1, 2), np.float32), np.zeros((1, 3), np.float32), zeros, k=1),
        "error must be positive": lambda: choose_results(
            np.zeros((1, 2), np.float32), np.zeros((1, 2), np.float32), zeros[:1, :2].copy(), k=1, misses=1.0
        ),
        "k must be in 1": lambda: candidate_count(0, 0, 5),
    }
    for sentence, call in calls.items():
        with pytest.raises((ValueError, TypeError), match=sentence):
            call()
    with pytest.raises(ValueError, match="score must be 0 without dense rows"):
        whole.engine(dense_dtype="none").score(QUERIES, zeros, np.full(Q, 1), threads=1)


def test_what_is_missing_stays_missing() -> None:
    none = np.full((2, 4), -np.inf, np.float32)
    origins, reads = merge_candidates([none, none], [np.full((2, 4), -1)] * 2)
    assert (origins == -1).all() and (reads == 0).all()
    scores, ids, read = choose_results(none, none, np.full((2, 4), -1), k=3)
    assert (scores == -np.inf).all() and (ids == -1).all() and (read == 0).all()
