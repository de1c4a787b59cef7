"""Progress: silent by default, one line per stage into a file, a bar on a terminal."""

from __future__ import annotations

import io
import re

import pytest

from vqdistill import progress
from vqdistill.progress import ConsoleProgress, Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_silent_progress_counts_and_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress()
    with progress.stage("encode", total=10) as stage:
        stage.advance(4)
        stage.advance()
    progress.note("text")
    assert stage.done == 5
    assert capsys.readouterr() == ("", "")


def test_one_line_for_each_finished_stage() -> None:
    stream = io.StringIO()
    progress = ConsoleProgress(stream)
    with progress.stage("encode", total=3000) as stage:
        stage.advance(1000)
        stage.advance(2000)
    with progress.stage("publish"):
        pass
    progress.note("done")
    encode, publish, note = stream.getvalue().splitlines()
    assert re.fullmatch(r"encode: 3,000 rows in \d+\.\d s \([\d,]+ rows/s\)", encode)
    assert re.fullmatch(r"publish: done in \d+\.\d s", publish)
    assert note == "done"


def test_a_failed_stage_does_not_say_that_it_finished() -> None:
    stream = io.StringIO()
    with pytest.raises(ZeroDivisionError), ConsoleProgress(stream).stage("encode"):
        _ = 1 / 0
    assert stream.getvalue() == ""


def test_a_terminal_gets_a_bar_with_stage_rate_and_unit() -> None:
    stream = Terminal()
    with ConsoleProgress(stream).stage("train", total=20, unit="steps") as stage:
        stage.advance(20)
    assert re.search(r"train: 100%.*20/20 .* steps/s\]", stream.getvalue())


def test_a_long_stage_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now)
    stream = io.StringIO()
    with ConsoleProgress(stream).stage("encode", total=4000, unit_bytes=2**20) as stage:
        stage.skip(1000)
        for _ in range(3):
            now += 20
            stage.advance(1000)
    assert stream.getvalue().splitlines() == [
        "encode: 3,000 rows, 2.93GiB of 4,000 rows, 3.91GiB (75%), 50 rows/s, 50.0MiB/s, 00:20 left",
        "encode: 4,000 rows, 3.91GiB (1,000 of them before) in 60.0 s (50 rows/s, 50.0MiB/s)",
    ]


def test_bytes_are_counted_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now)
    stream = io.StringIO()
    with ConsoleProgress(stream).stage("write index", 900, "B") as stage:
        now += 30
        stage.advance(300)
    assert stream.getvalue().splitlines() == [
        "write index: 300 B of 900 B (33%), 10 B/s, 01:00 left",
        "write index: 300 B in 30.0 s (10 B/s)",
    ]


def test_a_bar_shows_bytes_and_starts_where_it_went_on() -> None:
    stream = Terminal()
    with ConsoleProgress(stream).stage("encode", total=20, unit_bytes=2**20) as stage:
        stage.skip(5)
        stage.advance(15)
    assert re.search(r"encode: 100%.*20/20 .* rows/s, 20.0MiB\]", stream.getvalue())
