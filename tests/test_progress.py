"""Progress: silent by default, one line per stage into a file, a bar on a terminal."""

from __future__ import annotations

import io
import re

import pytest

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
