"""Rows in several sets, some of them deleted, are searched as the same rows in one set are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.kernels.support import QUADS, Shape, encode_dense, random_arrays, small_integers
from vqdistill.kernels import Engine, cpu_level, pack_codes, scan_order, unpack_codes

SHAPE = Shape(n=700, nlist=6, d=12, m=8, dense_dtype="f16")
SIZES = (31, 300, 1, 64, 304)
"""Rows of each set."""
Arrays = dict[str, Any]


class Parted:
    """The rows of one index, and the same rows in sets; row numbers go over all sets."""

    def __init__(self, shape: Shape, folder: Path, **changes: Any) -> None:
        rng = np.random.default_rng(5)
        self.whole = random_arrays(shape) | changes
        self.lists = np.repeat(np.arange(shape.nlist), np.diff(self.whole["list_offsets"]))
        codes = unpack_codes(self.whole["packed"], shape.n)
        dense = encode_dense("f16", small_integers(rng, shape.n, shape.d).astype(np.float64), rng)
        self.position = np.empty(shape.n, np.int64)
        """In the sets, of each row of the whole."""
        self.members = np.split(rng.permutation(shape.n), np.cumsum(SIZES)[:-1])
        self.files, sets, first = [], [], 0
        for number, rows in enumerate([*self.members, np.arange(shape.n)]):
            rows.sort()  # list order, as that of the whole
            path = folder / f"dense{number}"
            path.write_bytes(bytes(100) + dense[rows].tobytes())
            self.files.append(path.open("rb"))
            if number < len(self.members):
                self.position[rows] = np.arange(first, first + len(rows))
                first += len(rows)
            offsets = np.searchsorted(self.lists[rows], np.arange(shape.nlist + 1)).astype(np.int64)
            packed = pack_codes(codes[rows])
            if number < len(self.members):  # the whole keeps the order of files
                packed = scan_order(packed)
            sets.append((offsets, packed, self.files[-1].fileno(), None))
        self.sets, self.single = sets[:-1], sets[-1]

    def engines(self, deleted: npt.NDArray[np.int64] | None = None) -> tuple[Engine, Engine]:
        """Engines over the whole and over the sets, without some rows of the whole."""
        model = {key: value for key, value in self.whole.items() if key not in ("list_offsets", "packed")}
        dense = {"dense_offset": 100, "dense_dtype": "f16"}
        first, added = self.sets[0], tuple(self.sets[1:])
        alive = None if deleted is None else np.setdiff1d(np.arange(len(self.lists)), deleted)
        whole = Engine(
            **model, **dense, list_offsets=self.single[0], packed=self.single[1], dense_fd=self.single[2],
            alive=None if alive is None else self.bits([np.arange(len(self.lists))], alive),
        )  # fmt: skip
        parted = Engine(
            **model, **dense, list_offsets=first[0], packed=first[1], dense_fd=first[2], added=added,
            alive=None if alive is None else self.bits(self.members, alive),
        )  # fmt: skip
        return whole, parted

    def bits(self, members: list[npt.NDArray[np.int64]], rows: npt.NDArray[np.int64]) -> Any:
        """Rows of the whole as a filter over sets with these members."""
        blocks = []
        for part in members:
            bits = np.zeros(-(-len(part) // 32) * 32, bool)
            bits[: len(part)] = np.isin(part, rows)
            blocks.append(np.packbits(bits, bitorder="little").view("<u4"))
        return np.concatenate(blocks), np.bincount(self.lists[rows], minlength=SHAPE.nlist).astype(np.int64)

    def require_same(self, whole: Any, parted: Any) -> None:
        """The same scores, and the same rows wherever scores decide; ties go by position, which differs."""
        (a_scores, a_rows, a_stats), (b_scores, b_positions, b_stats) = whole, parted
        assert np.array_equal(a_scores, b_scores)
        row_of = np.argsort(self.position)
        for scores, a, b in zip(a_scores, a_rows, b_positions, strict=True):
            sure = scores > scores[-1]
            back = np.where(b < 0, -1, row_of[np.maximum(b, 0)])
            assert set(a[sure].tolist()) == set(back[sure].tolist())
        assert np.array_equal(a_stats[:, :2], b_stats[:, :2])


@pytest.fixture(params=[False, True], ids=["plain", "residual"])
def parted(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Parted]:
    made = Parted(SHAPE, tmp_path, residual=request.param)
    yield made
    for file in made.files:
        file.close()


QUERIES = small_integers(np.random.default_rng(9), 17, SHAPE.d)
DELETED = np.random.default_rng(1).permutation(SHAPE.n)[:250]


@pytest.mark.parametrize("deleted", [None, DELETED, np.arange(31)], ids=["none", "some", "few"])
@pytest.mark.parametrize("io", ["refine", "codes"])
@pytest.mark.parametrize("probe", [{"nprobe": 6}, {"nprobe": 3}, {"nprobe": 6, "lift": 0.9, "temperature": 8.0}])
def test_sets_are_searched_as_one(parted: Parted, deleted: Any, io: str, probe: Any) -> None:
    options = {"k": 20, "refine": 700 if io == "refine" else 0, "threads": 2} | probe
    whole, sets = parted.engines(deleted)
    found = [engine.search(QUERIES, **options) for engine in (whole, sets)]
    if io == "codes":  # 8-bit scores tie more often than exact ones: look at all candidates
        found = [engine.search(QUERIES, **options | {"k": 700}) for engine in (whole, sets)]
    parted.require_same(*found)
    if deleted is not None:
        gone = set(parted.position[deleted].tolist())
        assert not gone & set(found[1][1].reshape(-1).tolist())


@pytest.mark.parametrize("deleted", [None, DELETED])
def test_range_search_of_sets(parted: Parted, deleted: Any) -> None:
    options = {"threshold": 20.0, "margin": 100.0, "verify": True, "nprobe": 6, "threads": 1}
    whole, sets = parted.engines(deleted)
    a, b = (engine.range_search(QUERIES, **options) for engine in (whole, sets))
    assert np.array_equal(a[0], b[0]) and np.array_equal(a[1], b[1]) and a[0].sum() > 20
    row_of = np.argsort(parted.position)
    at = 0
    for count in a[0].tolist():
        assert set(a[2][at : at + count].tolist()) == set(row_of[b[2][at : at + count]].tolist())
        at += count


def test_a_filter_over_sets(parted: Parted) -> None:
    rows = np.random.default_rng(2).permutation(SHAPE.n)[:100]
    whole, sets = parted.engines()
    options = {"k": 20, "nprobe": 6, "refine": 700, "threads": 1}
    a = whole.search(QUERIES, **options, allow=parted.bits([np.arange(SHAPE.n)], rows))
    b = sets.search(QUERIES, **options, allow=parted.bits(parted.members, rows))
    parted.require_same(a, b)


def test_bad_sets_are_refused(parted: Parted) -> None:
    model = parted.whole | {"packed": scan_order(parted.whole["packed"].copy())}
    offsets, packed, fd, _ = parted.sets[1]
    for bad, message in [
        ((offsets, packed, fd), r"added must be \(list_offsets, packed, dense_fd, dense_map\), got tuple"),
        ((offsets[:-1], packed, fd, None), r"added list_offsets must be \(nlist \+ 1,\) int64"),
        ((offsets, packed[:-1], fd, None), "added packed must be the blocks of 300 rows"),
        ((offsets[::-1].copy(), packed, fd, None), r"list_offsets must be \(nlist \+ 1,\) rising from 0"),
        ((offsets, packed, "x", None), "added dense_fd must be an integer"),
    ]:
        with pytest.raises((TypeError, ValueError), match=message):
            Engine(**model, added=(bad,))
    with pytest.raises(ValueError, match="added dense_fd must be an open file descriptor, got -1"):
        Engine(**model, added=((offsets, packed, -1, None),), dense_fd=fd, dense_dtype="f16")
    with pytest.raises(ValueError, match="added dense_map must be the whole file|dense_map must be the whole file"):
        Engine(**model, added=((offsets, packed, fd, b"x"),), dense_fd=fd, dense_dtype="f16")


@pytest.mark.skipif(cpu_level() not in QUADS, reason="all codes have one order at this CPU level")
def test_sets_have_the_order_of_the_first(parted: Parted) -> None:
    with pytest.raises(ValueError, match=r"added packed must be in the order of packed, got \(10, 1, 32, 4\) uint8"):
        Engine(**parted.whole, added=(parted.sets[1],))
