"""Progress of long work, stage by stage: silent, a bar on a terminal, or plain lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TextIO

from tqdm import tqdm

LINE_SECONDS = 30.0
"""Time between two lines of a stage that goes on, in a log."""


class Stage:
    """One running stage; the work calls `advance` as it goes."""

    def __init__(self, advanced: Callable[[int], None] | None = None) -> None:
        self.done = 0
        """Units finished so far."""
        self.skipped = 0
        """Of these, units that were finished before."""
        self._advanced = advanced

    def skip(self, n: int) -> None:
        """Count `n` units that an earlier process has finished, which say nothing of the rate."""
        self.skipped += n
        self.advance(n)

    def advance(self, n: int = 1) -> None:
        """Count `n` more units as done."""
        self.done += n
        if self._advanced is not None:
            self._advanced(n)


class Progress:
    """Says nothing; what library code gets when its caller asked for no progress."""

    @contextmanager
    def stage(self, name: str, total: int | None = None, unit: str = "rows", unit_bytes: int = 0) -> Iterator[Stage]:
        """Run one stage of the work.

        Parameters
        ----------
        name : what the stage does, in two or three words
        total : units of the whole stage, if known; an ETA needs it
        unit : what is counted, in the plural; "B" for bytes
        unit_bytes : bytes that one unit stands for, 0 = none that matter
        """
        yield Stage()

    def note(self, text: str) -> None:
        """Show `text`, of one or more lines, between stages."""


class ConsoleProgress(Progress):
    """On a terminal a bar with stage, rate, ETA and bytes; otherwise a line now and then, and one at the end.

    Parameters
    ----------
    stream : where to write; standard error, so that standard output stays free for results
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream

    @contextmanager
    def stage(self, name: str, total: int | None = None, unit: str = "rows", unit_bytes: int = 0) -> Iterator[Stage]:
        """Run one stage of the work, see `Progress.stage`."""
        if self._stream.isatty():
            with self._bar(name, total, unit) as bar:
                stage = Stage(lambda n: self._move(bar, stage, n, unit_bytes))
                yield stage
            return
        log = _Log(name, total, unit, unit_bytes)
        stage = Stage(lambda n: self._now_and_then(log, stage))
        yield stage
        self.note(log.finished(stage))

    def note(self, text: str) -> None:
        """Show `text`, of one or more lines, between stages."""
        print(text, file=self._stream, flush=True)

    def _bar(self, name: str, total: int | None, unit: str) -> tqdm[None]:
        scaled = unit == "B"
        return tqdm(
            total=total,
            desc=name,
            unit="B" if scaled else f" {unit}",
            unit_scale=scaled,
            unit_divisor=1024,
            file=self._stream,
            leave=True,
        )

    @staticmethod
    def _move(bar: tqdm[None], stage: Stage, n: int, unit_bytes: int) -> None:
        bar.initial = stage.skipped
        if unit_bytes:
            bar.set_postfix_str(_size(stage.done * unit_bytes), refresh=False)
        bar.update(n)

    def _now_and_then(self, log: _Log, stage: Stage) -> None:
        ended = stage.done == log.total  # which has a line of its own
        if not ended and time.perf_counter() - log.told >= LINE_SECONDS:
            log.told = time.perf_counter()
            self.note(log.going_on(stage))


@dataclass
class _Log:
    """Lines about one stage."""

    name: str
    total: int | None
    unit: str
    unit_bytes: int
    start: float = field(init=False)
    told: float = field(init=False)

    def __post_init__(self) -> None:
        self.start = self.told = time.perf_counter()

    def going_on(self, stage: Stage) -> str:
        """Say how far it is, at which rate, and when it may end."""
        rate = self._rate(stage)
        share = left = ""
        if self.total:
            share = f" of {self._amount(self.total)} ({stage.done / self.total:.0%})"
            left = f", {_time((self.total - stage.done) / rate)} left" if rate > 0 else ""
        return f"{self.name}: {self._amount(stage.done)}{share}{self._speed(rate, ', ')}{left}"

    def finished(self, stage: Stage) -> str:
        """Say what was done, how long it took, and at which rate."""
        seconds = time.perf_counter() - self.start
        if not stage.done:
            return f"{self.name}: done in {seconds:.1f} s"
        before = f" ({stage.skipped:,} of them before)" if stage.skipped else ""
        speed = self._speed(self._rate(stage), "")
        return f"{self.name}: {self._amount(stage.done)}{before} in {seconds:.1f} s" + (f" ({speed})" if speed else "")

    def _rate(self, stage: Stage) -> float:
        seconds = time.perf_counter() - self.start
        return (stage.done - stage.skipped) / seconds if seconds > 0 else 0.0

    def _amount(self, count: int) -> str:
        if self.unit == "B":
            return _size(count)
        size = f", {_size(count * self.unit_bytes)}" if self.unit_bytes else ""
        return f"{count:,} {self.unit}{size}"

    def _speed(self, rate: float, before: str) -> str:
        if rate <= 0:
            return ""
        speed = f"{_size(int(rate))}/s" if self.unit == "B" else f"{rate:,.{0 if rate >= 10 else 2}f} {self.unit}/s"
        return before + speed + (f", {_size(int(rate * self.unit_bytes))}/s" if self.unit_bytes else "")


def _size(count: int) -> str:
    return f"{count} B" if count < 1000 else str(tqdm.format_sizeof(count, "iB", 1024))


def _time(seconds: float) -> str:
    return str(tqdm.format_interval(seconds))
