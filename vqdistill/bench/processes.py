"""Fresh processes of the worker: pinned, limited in time, and without a share in what failed before."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqdistill.bench.machine import environment
from vqdistill.errors import VqdistillError

RESULT = "result.json"
_TAIL = 400
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


class RunFailed(VqdistillError):
    """A stage of a run failed or took too long; the message says which and why."""


@dataclass(frozen=True)
class Place:
    """Where a process may run."""

    cores: tuple[int, ...]
    time_limit_s: float
    join: Callable[[], None] | None = None
    """called in the child before its program starts"""


def run_stage(stage: str, job: dict[str, Any], folder: Path, place: Place) -> dict[str, Any]:
    """Run one stage of the worker and return its result.

    Raises
    ------
    RunFailed
        If it fails or takes longer than it may; it and its children are gone then.
    """
    (folder / RESULT).unlink(missing_ok=True)
    path = folder / f"{stage}.json"
    path.write_text(json.dumps(job, sort_keys=True))

    def prepare() -> None:
        os.setsid()
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # whoever is killed takes the work along
        os.sched_setaffinity(0, place.cores)
        if place.join is not None:
            place.join()

    log = folder / f"{stage}.log"
    command = [sys.executable, "-m", "vqdistill.bench.worker", stage, str(path)]
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=environment(len(place.cores)),
            preexec_fn=prepare,
        )
        begin = time.monotonic()
        try:
            process.wait(place.time_limit_s)
        except subprocess.TimeoutExpired:
            raise RunFailed(f"{stage} took longer than {place.time_limit_s:g} s") from None
        finally:
            _end(process)
    took = time.monotonic() - begin
    result = _result(folder / RESULT)
    said = result.get("error") or result.get("input")
    if process.returncode or said:
        raise RunFailed(f"{stage} failed after {took:.0f} s: {said or _why(process.returncode, log)}")
    return result


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the session of a child that is still there."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _result(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return {}


def _why(code: int, log: Path) -> str:
    """Say how a process ended: the signal, and the last line that it printed."""
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return f"{how}{': ' + lines[-1].strip()[:_TAIL] if lines else ''}"
