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
        self._sent = 0.0

    @contextmanager
    def stage(self, name: str, total: int | None = None, unit: str = "rows", unit_bytes: int = 0) -> Iterator[Stage]:
        """Run one stage of the work, see `Progress.stage`."""
        self._send(("stage", name, total, unit, unit_bytes))
        stage = Stage(lambda _: self._now_and_then(stage))
        yield stage
        self._send(("done", stage.done, stage.skipped))
        self._send(("end",))

    def note(self, text: str) -> None:
        """See `Progress.note`."""
        self._send(("note", text))

    def _now_and_then(self, stage: Stage) -> None:
        if time.monotonic() - self._sent >= EVERY_S:
            self._sent = time.monotonic()
            self._send(("done", stage.done, stage.skipped))


class Replay:
    """Shows messages of one process, of which some may be lost."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._open = ExitStack()
        self._stage = Stage()

    def show(self, message: Message) -> None:
        """Show a message of a `Relay`."""
        kind, *said = message
        if kind == "stage":
            self.close()
            self._stage = self._open.enter_context(self._progress.stage(*said))
        elif kind == "done":
            catch_up(self._stage, *said)
        elif kind == "end":
            self.close()
        elif kind == "note":
            self._progress.note(*said)

    def close(self) -> None:
        """End a stage that is open."""
        self._open.close()
        self._stage = Stage()


def catch_up(stage: Stage, done: int, skipped: int = 0) -> None:
    """Bring a stage to where another one is; it never goes back."""
    if skipped > stage.skipped:
        stage.skip(skipped - stage.skipped)
    if done > stage.done:
        stage.advance(done - stage.done)
