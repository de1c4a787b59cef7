"""One HDF5 file a run: raw ids, scores and times, and everything needed to judge them later."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from vqdistill.errors import InvalidInput

FORMAT = 1
SUFFIX = ".run.h5"
FAILED = ".failed.json"
_READ_ERRORS = (OSError, KeyError, ValueError, TypeError, RuntimeError)
_ARRAYS = ("ids", "scores", "seconds", "cpu_seconds", "latencies", "deep_ids", "deep_scores")


@dataclass
class Operation:
    """Raw results of one setting."""

    facts: dict[str, Any]
    """target, setting, tune_recall, reads, findings, timed (queries of a timed pass)"""
    ids: npt.NDArray[np.int64]
    """(q, k) of all test queries, -1 where missing"""
    scores: npt.NDArray[np.float32]
    """(q, k) exact similarities, recomputed by the referee"""
    seconds: npt.NDArray[np.float64]
    """(r, c) wall time of each call of each timed pass in batches; empty if it was not timed"""
    cpu_seconds: npt.NDArray[np.float64]
    """(r, c) processor time of the same calls, of all threads"""
    latencies: npt.NDArray[np.float64]
    """(r, s) seconds of queries one at a time"""
    deep_ids: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty((0, 0), np.int64))
    """(q, 100) where labels are known"""
    deep_scores: npt.NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))

    def add_passes(self, seconds: Any, cpu_seconds: Any, latencies: Any) -> None:
        """Keep more timed passes: (r, c), (r, c) and (r, s) as those that there are."""
        self.seconds = np.concatenate((self.seconds, seconds))
        self.cpu_seconds = np.concatenate((self.cpu_seconds, cpu_seconds))
        self.latencies = np.concatenate((self.latencies, latencies))


@dataclass
class Run:
    """One system at one budget."""

    facts: dict[str, Any]
    """system, budget, repeat, seed, dataset, bytes, memory, build, machine, versions, options, yardstick, rounds"""
    operations: list[Operation]
    path: Path | None = None
    """file that it was read from"""

    @property
    def refused(self) -> list[str]:
        """What the referee threw it out for."""
        found = [one for op in self.operations for one in op.facts["findings"] if one["refused"]]
        return sorted({one["text"] for one in found})


def write_run(run: Run, path: Path) -> None:
    """Write all of a run or nothing: a file that is there is whole."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with h5py.File(unfinished, "w") as file:
            file.attrs["format"] = FORMAT
            file.attrs["facts"] = json.dumps(run.facts, sort_keys=True)
            for number, operation in enumerate(run.operations):
                group = file.create_group(f"operations/{number}")
                group.attrs["facts"] = json.dumps(operation.facts, sort_keys=True)
                for name in _ARRAYS:
                    group.create_dataset(name, data=getattr(operation, name))
        with unfinished.open("rb") as done:
            os.fsync(done.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def read_run(path: Path) -> Run:
    """Read a run.

    Raises
    ------
    InvalidInput
        If the file is no run, or of a newer format.
    """
    with _opened(path) as (file, facts):
        groups = file.get("operations", {})
        operations = [_operation(groups[str(number)]) for number in range(len(groups))]
    return Run(facts, operations, path)


def read_facts(path: Path) -> dict[str, Any]:
    """Read the facts of a run without its results; raises as `read_run`."""
    with _opened(path) as (_, facts):
        return facts


@contextmanager
def _opened(path: Path) -> Iterator[tuple[h5py.File, dict[str, Any]]]:
    """Open the file of a run, with its facts; what cannot be read of it meanwhile is told by a sentence."""
    try:
        with h5py.File(path) as file:
            version = int(file.attrs["format"])
            if version != FORMAT:
                raise InvalidInput(f"{path} has format {version} of runs, this version reads {FORMAT}")
            facts = json.loads(file.attrs["facts"])
            if not isinstance(facts, dict) or not {"system", "budget", "dataset", "bytes"} <= facts.keys():
                raise InvalidInput(f"{path} is no run of vqdistill bench: it does not say of which system")
            yield file, facts
    except InvalidInput:
        raise
    except _READ_ERRORS as error:
        raise InvalidInput(f"{path} is no run of vqdistill bench: {error}") from None


def _operation(group: Any) -> Operation:
    arrays = {name: np.asarray(group[name]) for name in _ARRAYS}
    operation = Operation(json.loads(group.attrs["facts"]), **arrays)
    if operation.ids.ndim != 2 or operation.ids.shape != operation.scores.shape:
        raise ValueError(f"ids {operation.ids.shape} and scores {operation.scores.shape} differ")
    return operation


def runs_below(folder: Path) -> list[Run]:
    """Read all runs below a folder, in the order of their paths."""
    return [read_run(path) for path in sorted(folder.rglob(f"*{SUFFIX}")) if not path.name.startswith(".")]
