"""What requests leave to be noted is noted soon, in order, and never kept for long."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest

from vqdistill.server.books import _MOST, Books


@pytest.fixture
def noted() -> list[int]:
    return []


def test_a_note_waits_for_others_but_not_long(noted: list[int]) -> None:
    async def work() -> list[int]:
        books = Books()
        books.note(noted.append, 1)
        books.note(noted.append, 2)
        early = list(noted)
        await asyncio.sleep(0.2)
        return early

    assert asyncio.run(work()) == []
    assert noted == [1, 2]


def test_many_notes_do_not_wait(noted: list[int]) -> None:
    async def work() -> None:
        books = Books()
        for number in range(_MOST + 1):
            books.note(noted.append, number)

    asyncio.run(work())
    assert noted == list(range(_MOST))


def test_notes_of_a_loop_that_ended_are_not_forgotten(noted: list[int]) -> None:
    books = Books()

    async def work(number: int) -> None:
        books.note(noted.append, number)

    for number in range(3):
        asyncio.run(work(number))
    books.settle()
    books.settle()
    assert noted == [0, 1, 2]


def test_lines_go_to_standard_error_in_order(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    async def work() -> None:
        books = Books()
        for line in ("one\n", None, "two\n"):
            books.note(lambda line: line, line)
        books.settle()

    asyncio.run(work())
    assert capsys.readouterr().err == "one\ntwo\n"
    closed = open("/dev/null", "w")  # noqa: SIM115
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed)
    asyncio.run(work())  # nobody reads any more, and nobody is told
