"""Progress of long work, stage by stage: silent, a bar on a terminal, or one line per finished stage."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from tqdm import tqdm


class Stage:
    """One running stage; the work calls `advance` as it goes."""

    def __init__(self, bar: tqdm[None] | None = None) -> None:
        self.done = 0
        """Units finished so far."""
        self._bar = bar

    def advance(self, n: int = 1) -> None:
        """Count `n` more units as done."""
        self.done += n
        if self._bar is not None:
            self._bar.update(n)


class Progress:
    """Says nothing; what library code gets when its caller asked for no progress."""

    @contextmanager
    def stage(self, name: str, total: int | None = None, unit: str = "rows") -> Iterator[Stage]:
        """Run one stage of the work.

        Parameters
        ----------
        name : what the stage does, in two or three words
        total : units of the whole stage, if known; an ETA needs it
        unit : what is counted, in the plural
        """
        yield Stage()

    def note(self, text: str) -> None:
        """Show `text`, of one or more lines, between stages."""


class ConsoleProgress(Progress):
    """A bar with stage, rate and ETA on a terminal; one line per finished stage otherwise.

    Parameters
    ----------
    stream : where to write; standard error, so that standard output stays free for results
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream

    @contextmanager
    def stage(self, name: str, total: int | None = None, unit: str = "rows") -> Iterator[Stage]:
        """Run one stage of the work, see `Progress.stage`."""
        start = time.perf_counter()
        if self._stream.isatty():
            with tqdm(total=total, desc=name, unit=f" {unit}", file=self._stream, leave=True) as bar:
                yield Stage(bar)
            return
        stage = Stage()
        yield stage
        self.note(_line(name, stage.done, unit, time.perf_counter() - start))

    def note(self, text: str) -> None:
        """Show `text`, of one or more lines, between stages."""
        print(text, file=self._stream, flush=True)


def _line(name: str, done: int, unit: str, seconds: float) -> str:
    work = f": {done:,} {unit}" if done else ":"
    rate = f" ({done / seconds:,.0f} {unit}/s)" if done and seconds > 0 else ""
    return f"{name}{work} in {seconds:.1f} s{rate}".replace(": in", ": done in")
