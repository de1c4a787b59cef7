"""A store in the memory of the process, and one that fails at a chosen step."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import fsspec
import pytest


@pytest.fixture
def memory() -> Iterator[Any]:
    """The store behind memory://, empty before and after."""
    store = fsspec.filesystem("memory", use_listings_cache=False)
    store.store.clear()
    store.pseudo_dirs[:] = [""]
    yield store
    store.store.clear()
    store.pseudo_dirs[:] = [""]


def dies(patch: pytest.MonkeyPatch, store: Any, at: int, error: BaseException) -> None:
    """From the step `at` on that changes the store, none is carried out, and all raise `error`."""
    step = itertools.count()

    def dying(act: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            if next(step) >= at:
                raise error
            return act(*arguments, **options)

        return run

    for name in ("put_file", "pipe_file", "rm_file"):
        patch.setattr(type(store), name, dying(getattr(type(store), name)))
