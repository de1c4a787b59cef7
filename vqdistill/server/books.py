"""What is noted of requests, some at a time."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

_MOST = 32
"""Notes that wait at most: enough to be booked out of warm caches, too few to be felt by the requests behind them."""
_DELAY_S = 0.02


class Books:
    """Has what a loop answered counted and logged, some requests at once: alone, each takes a third longer."""

    def __init__(self) -> None:
        self._notes: list[tuple[Callable[..., str | None], tuple[Any, ...]]] = []

    def note(self, function: Callable[..., str | None], *arguments: Any) -> None:
        """Call a function soon, in the thread of the loop that runs; what it returns is a line of the log."""
        self._notes.append((function, arguments))
        if len(self._notes) == 1:
            asyncio.get_running_loop().call_later(_DELAY_S, self.settle)
        elif len(self._notes) >= _MOST:
            self.settle()

    def settle(self) -> None:
        """Call what waits to be called."""
        notes, self._notes = self._notes, []
        lines = [line for function, arguments in notes if (line := function(*arguments)) is not None]
        if lines:
            with suppress(OSError, ValueError):  # nobody reads any more
                sys.stderr.write("".join(lines))
