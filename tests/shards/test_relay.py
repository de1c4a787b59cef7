"""Progress that comes from another process as messages."""

from __future__ import annotations

import io

import pytest

from vqdistill.progress import ConsoleProgress
from vqdistill.shards import relay
from vqdistill.shards.relay import Message, Relay, Replay


def work(progress: Relay) -> None:
    progress.note("begins")
    with progress.stage("encode", 100) as stage:
        stage.skip(40)
        for _ in range(6):
            stage.advance(10)


def test_a_replay_shows_what_happened_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "EVERY_S", 0.0)
    told: list[Message] = []
    work(Relay(told.append))
    assert [message[0] for message in told] == ["note", "stage", *["done"] * 8, "end"]
    shown = io.StringIO()
    replay = Replay(ConsoleProgress(shown))
    for message in told:
        replay.show(message)
    assert shown.getvalue().startswith("begins\nencode: 100 rows (40 of them before) in ")


def test_a_replay_bears_the_loss_of_any_message() -> None:
    told: list[Message] = []
    work(Relay(told.append))
    for lost in range(len(told)):
        shown = io.StringIO()
        replay = Replay(ConsoleProgress(shown))
        for message in told[:lost] + told[lost + 1 :]:
            replay.show(message)
        replay.close()
        assert shown.getvalue().count("\n") in (1, 2)


def test_stages_within_stages_are_shown() -> None:
    told: list[Message] = []
    progress = Relay(told.append)
    with progress.stage("write", 8) as outer:
        with progress.stage("prove"):
            outer.advance(3)
        outer.advance(5)
    shown = io.StringIO()
    replay = Replay(ConsoleProgress(shown))
    for message in told:
        replay.show(message)
    assert [line.split(" in ")[0] for line in shown.getvalue().splitlines()] == ["prove: done", "write: 8 rows"]


def test_few_messages_are_sent() -> None:
    told: list[Message] = []
    with Relay(told.append).stage("encode", 10**6) as stage:
        for _ in range(1000):
            stage.advance()
    assert len(told) < 20 and told[-2:] == [("done", 0, 1000, 0), ("end", 0)]
