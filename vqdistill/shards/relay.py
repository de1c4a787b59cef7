"""Progress of work in another process, as messages."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from vqdistill.progress import Progress, Stage

EVERY_S = 0.5
"""Time between two messages of a stage that goes on."""

Message = tuple[Any, ...]


class Relay(Progress):
    """Sends what happens; `Replay` shows it elsewhere.

    Parameters
    ----------
    send : called with each message
    """

    def __init__(self, send: Callable[[Message], None]) -> None:
        self._send = send
        self._depth = 0
        self._sent = 0.0

    @contextmanager
    def stage(self, name: str, total: int | None = None, unit: str = "rows", unit_bytes: int = 0) -> Iterator[Stage]:
        """Run one stage of the work, perhaps within another one, see `Progress.stage`."""
        depth = self._depth
        self._depth += 1
        self._send(("stage", depth, name, total, unit, unit_bytes))
        stage = Stage(lambda _: self._now_and_then(depth, stage))
        try:
            yield stage
        finally:
            self._depth = depth
        self._send(("done", depth, stage.done, stage.skipped))
        self._send(("end", depth))

    def note(self, text: str) -> None:
        """See `Progress.note`."""
        self._send(("note", text))

    def _now_and_then(self, depth: int, stage: Stage) -> None:
        if time.monotonic() - self._sent >= EVERY_S:
            self._sent = time.monotonic()
            self._send(("done", depth, stage.done, stage.skipped))


class Replay:
    """Shows messages of one process, of which some may be lost."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._open: list[tuple[ExitStack, Stage]] = []

    def show(self, message: Message) -> None:
        """Show a message of a `Relay`."""
        kind, *said = message
        if kind == "note":
            self._progress.note(*said)
            return
        depth, *said = said
        if kind == "done":
            if depth < len(self._open):
                catch_up(self._open[depth][1], *said)
            return
        self.close(depth)
        if kind == "stage":
            context = ExitStack()
            self._open.append((context, context.enter_context(self._progress.stage(*said))))

    def close(self, depth: int = 0) -> None:
        """End stages that are open, from a depth on."""
        while len(self._open) > depth:
            self._open.pop()[0].close()


def catch_up(stage: Stage, done: int, skipped: int = 0) -> None:
    """Bring a stage to where another one is; it never goes back."""
    if skipped > stage.skipped:
        stage.skip(skipped - stage.skipped)
    if done > stage.done:
        stage.advance(done - stage.done)
