"""The cap on the memory of a compile: sizes follow from it, and a process keeps within it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vqdistill
from vqdistill.compiler.memory import LARGEST, parse_cap, peak_bytes, sizes_within
from vqdistill.compiler.plan import CompilePlan
from vqdistill.errors import BudgetInfeasible, InvalidInput
from vqdistill.types import Facts, Metric

MIB = 1 << 20
LAUNCH = """
import os, sys
child = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
_, status, usage = os.wait4(child, 0)
print()
print(status, usage.ru_maxrss)
"""
"""Runs a command and prints its status and peak: a child's begins at what its parent held, which must be little."""
GIVEN: dict[str, int] = {"threads": 2, "source_bytes": 0}


def plan_of(n: int, d: int = 384, ram: str = "32B/vec") -> CompilePlan:
    return vqdistill.plan(Facts(n=n, dim=d, dtype="float32", metric=Metric.COSINE), ram)


def smallest(plan: CompilePlan, **given: int) -> int:
    """MiB of the smallest cap, as its refusal says."""
    with pytest.raises(BudgetInfeasible, match="the smallest feasible one is") as refused:
        sizes_within(MIB, plan, **GIVEN | given)
    return int(re.findall(r"(\d+)MiB", str(refused.value))[0])


@pytest.mark.parametrize(("n", "d"), [(1, 2), (1000, 16), (200_000, 768), (2_800_000, 384), (100_000_000, 768)])
def test_the_smallest_cap_works_and_one_below_does_not(n: int, d: int) -> None:
    plan = plan_of(n, d, "1B/vec")
    least = smallest(plan)
    assert peak_bytes(sizes_within(least * MIB, plan, **GIVEN), plan, **GIVEN) <= least * MIB
    with pytest.raises(BudgetInfeasible):
        sizes_within((least - 1) * MIB, plan, **GIVEN)


def test_sizes_grow_with_the_cap_up_to_the_largest() -> None:
    plan = plan_of(2_800_000)
    chosen = [asdict(sizes_within(cap * MIB, plan, **GIVEN)) for cap in (800, 1024, 1500, 2000, 3000, 1 << 20)]
    for small, large in pairwise(chosen):
        assert all(small[name] <= large[name] for name in small)
    assert chosen[0] != chosen[-1] and chosen[-1] == asdict(LARGEST)


def test_memory_grows_with_the_lists_and_not_with_the_rows() -> None:
    """Lists grow with the root of the rows; a billion rows leave no four bytes for each."""
    small, large = plan_of(4_000_000), plan_of(1_000_000_000)
    assert large.model.nlist == 16 * small.model.nlist
    assert smallest(large) < 5 * smallest(small) and smallest(large) * MIB < 4 * large.facts.n


def test_what_the_source_holds_counts() -> None:
    plan = plan_of(100_000)
    assert smallest(plan, source_bytes=300 * MIB) - smallest(plan) in (299, 300, 301)


@pytest.mark.parametrize(("text", "wanted"), [("1GiB", 1 << 30), (" 700 MB", 7 * 10**8), (12345, 12345), ("5", 5)])
def test_caps_are_sizes(text: str | int, wanted: int) -> None:
    assert parse_cap(text) == wanted


@pytest.mark.parametrize("text", ["", "much", "32B/vec", "-1GiB", True, None, "1 parsec", "0"])
def test_what_is_no_size_is_refused(text: Any) -> None:
    with pytest.raises(InvalidInput):
        parse_cap(text)


@pytest.mark.parametrize("value", [f"{MIB}", "300MiB"])
def test_a_small_cap_is_refused_before_any_work(value: str, tmp_path: Path) -> None:
    with pytest.raises(BudgetInfeasible, match=r"build-ram of \d+ B is too small, the smallest feasible one is \d+MiB"):
        vqdistill.compile(np.eye(40, 8, dtype=np.float32) + 1, tmp_path / "x", build_ram=value)
    assert list(tmp_path.iterdir()) == []


def test_a_process_keeps_within_its_cap(tmp_path: Path) -> None:
    """The input alone is most of what the cap leaves beside the libraries."""
    n, d = 80_000, 192
    rows = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (n, d))
    rng = np.random.default_rng(0)
    for at in range(0, n, 10_000):
        rows[at : at + 10_000] = rng.standard_normal((10_000, d), np.float32)
    rows.flush()
    cap = smallest(plan_of(n, d, "4B/vec"), threads=1) + 10
    command = [sys.executable, "-m", "vqdistill", "compile", "x.npy", "-o", "x.vqd", "--no-distill", "--ram", "4B/vec"]
    done = subprocess.run(
        [sys.executable, "-c", LAUNCH, *command, "--queries", "none", "--threads", "1", "--build-ram", f"{cap}MiB"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    status, peak = map(int, done.stdout.split()[-2:])
    assert status == 0 and peak * 1024 <= cap * MIB
