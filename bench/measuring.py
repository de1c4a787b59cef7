"""What benches share: the command line in a fresh process, raw results that are kept, Markdown tables."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import vqdistill
from vqdistill.bench.machine import machine
from vqdistill.progress import Progress, Stage

RESULTS = Path(__file__).parent / "results"
K = 10
"""Exact neighbours that count."""
CANDIDATES = 100
"""Candidates among which they are looked for: "R10@100" is their share there, by code alone."""


def run(*arguments: str) -> dict[str, Any]:
    """Run one command of the command line; return its JSON with seconds, CPU seconds and peak memory of the process."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "vqdistill", *arguments, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        text = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"failed: {' '.join(command)}")
    output = json.loads(text)
    output.pop("index", None)  # a temporary folder
    seconds, peak = time.perf_counter() - start, usage.ru_maxrss * 1024
    cpu_s = usage.ru_utime + usage.ru_stime
    return {"seconds": seconds, "cpu_s": cpu_s, "peak_rss_bytes": peak, "output": output}


def every_list(index: str | Path, dataset: str | Path) -> dict[str, Any]:
    """Evaluate the codes alone, every list visited: `candidate_recall` is R10@100."""
    return run("eval", str(index), str(dataset), "-k", str(K), "--nprobe", "all", "--refine", str(CANDIDATES))


def circumstances() -> dict[str, Any]:
    """Return where and with what a result was measured."""
    known = machine()
    kept = {name: known[name] for name in ("processor", "cores", "cpu_level", "kernel")}
    return {"version": vqdistill.__version__, "python": platform.python_version(), "machine": kept}


def stored(path: Path, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the result kept at `path`; measure and keep it if there is none."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        result = measure() | circumstances()
        path.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
    return dict(json.loads(path.read_text()))


def line(cells: Sequence[str]) -> str:
    """Return one line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join(map(line, (header, ["---"] * len(header), *rows)))


def markers(name: str) -> tuple[str, str]:
    """Return the lines of a document between which a script writes."""
    return f"<!-- begin: {name} -->", f"<!-- end: {name} -->"


def with_block(text: str, name: str, block: str) -> str:
    """Return a document with `block` between its markers.

    Raises
    ------
    SystemExit
        If the markers are not both there, once and in order.
    """
    first, last = markers(name)
    before, begin, rest = text.partition(first)
    old, end, after = rest.partition(last)
    if not begin or not end or first in old + after or last in before + after:
        raise SystemExit(f"the document must have one line {first} and one line {last} after it")
    return f"{before}{first}\n\n{block}\n\n{last}{after}"


class Seconds(Progress):
    """What each stage takes, by a clock; CPU seconds unless another one is given."""

    def __init__(self, clock: Callable[[], float] = time.process_time) -> None:
        self._clock = clock
        self.spent: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, total: int | None = None, unit: str = "rows", unit_bytes: int = 0) -> Iterator[Stage]:
        """Measure one stage."""
        begin = self._clock()
        with super().stage(name, total, unit, unit_bytes) as stage:
            yield stage
        self.spent[name] = self.spent.get(name, 0.0) + self._clock() - begin
