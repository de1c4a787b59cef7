"""What a server can be told, and what it refuses to start with."""

from __future__ import annotations

import importlib
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vqdistill.cli import main
from vqdistill.errors import InvalidInput
from vqdistill.server import run
from vqdistill.server.config import Limits, ServerConfig, parse_indexes, read_key
from vqdistill.server.run import _listening

PLACE = {"a": Path("a.vqd")}


def test_indexes_are_named_by_their_stem_or_as_told() -> None:
    given = parse_indexes(["x/one.vqd", "two=y/b.vqd", "z/three", "./odd=name/four.vqd"])
    assert given == {
        "one": Path("x/one.vqd"),
        "two": Path("y/b.vqd"),
        "three": Path("z/three"),
        "four": Path("odd=name/four.vqd"),
    }


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["x/a.vqd", "y/a.vqd"], "names of indexes must differ, got 'a' for x/a.vqd and y/a.vqd; say NAME=y/a.vqd"),
        (["b c=x"], "names of indexes must be 1 to 64 letters, digits, dots, dashes or underscores, got 'b c'"),
        (["=x"], "names of indexes must be 1 to 64 letters, digits, dots, dashes or underscores, got ''"),
        ([".hidden=x"], "names of indexes must be 1 to 64 letters, digits, dots, dashes or underscores, got '.hidden'"),
    ],
)
def test_names_that_cannot_stand(given: list[str], sentence: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        parse_indexes(given)
    assert str(raised.value).startswith(sentence)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Limits(max_k=0), "max_k must be an integer of at least 1, got 0"),
        (lambda: Limits(max_body_bytes=10), "max_body_bytes must be an integer of at least 1024, got 10"),
        (lambda: Limits(queue=True), "queue must be an integer of at least 0, got True"),
        (lambda: Limits(timeout_s=0), "timeout_s must be a positive number of seconds, got 0"),
        (lambda: Limits(timeout_s=float("nan")), "timeout_s must be a positive number of seconds, got nan"),
        (lambda: ServerConfig(indexes={}), "indexes to serve must be given, got none"),
        (lambda: ServerConfig(indexes=PLACE, poll_s=0), "poll_s must be a positive number of seconds, got 0"),
        (lambda: ServerConfig(indexes=PLACE, drain_s=-1), "drain_s must be a non-negative number of seconds, got -1"),
        (
            lambda: ServerConfig(indexes=PLACE, api_key="short"),
            "the API key must be at least 16 printable ASCII characters without spaces, got 5",
        ),
    ],
)
def test_settings_out_of_range(make: Callable[[], Any], sentence: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        make()
    assert str(raised.value) == sentence


def test_the_key_comes_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key").write_text("from-a-file\n")
    monkeypatch.setenv("SOME_KEY", "from-the-environment")
    assert read_key(str(tmp_path / "key"), "SOME_KEY") == "from-a-file"
    assert read_key(None, "SOME_KEY") == "from-the-environment"
    assert read_key(None, "NO_KEY") is None
    with pytest.raises(InvalidInput, match=r"none: No such file or directory$"):
        read_key(str(tmp_path / "none"), "SOME_KEY")
    (tmp_path / "odd").write_bytes(b"\xff")
    with pytest.raises(InvalidInput, match=r"odd: it is not ASCII$"):
        read_key(str(tmp_path / "odd"), "SOME_KEY")


def test_a_key_is_never_shown() -> None:
    assert "sixteen" not in repr(ServerConfig(indexes=PLACE, api_key="sixteen-characters"))


def test_an_address_in_use_is_a_sentence() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InvalidInput) as raised, _listening("127.0.0.1", port):
            pass
    wanted = f"127.0.0.1:{port} must be an address to listen at, but cannot be: Address already in use"
    assert str(raised.value) == wanted
    with pytest.raises(InvalidInput, match=r"^host must be an address of this machine, got 'no\.invalid': "):
        _listening("no.invalid", 1).__enter__()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere.vqd"], "index must be a directory made by vqdistill, got nothing at nowhere.vqd"),
        (["a.vqd", "b/a.vqd"], "names of indexes must differ, got 'a' for a.vqd and b/a.vqd; say NAME=b/a.vqd"),
        (["a.vqd", "--port", "70000"], "Invalid value for '--port': 70000 is not in the range 0<=x<=65535."),
        (["a.vqd", "--api-key-file", "none"], "the API key cannot be read from none: No such file or directory"),
        ([], "Missing argument 'INDEX...'."),
    ],
    ids=range(5),
)
@pytest.mark.parametrize("workers", ["1", "2"])
def test_what_cannot_be_served_is_refused_at_once(
    arguments: list[str], sentence: str, workers: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as done:
        main(["serve", *arguments, "--workers", workers, *([] if "--port" in arguments else ["--port", "0"])])
    assert done.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("vqdistill: ") and sentence in last


def test_every_option_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(run, "serve", lambda *given: seen.append(given))
    monkeypatch.setenv("VQDISTILL_API_KEY", "sixteen-characters")
    options = "--host ::1 --port 9 --workers 3 --max-k 4 --max-batch 5 --max-body-bytes 6000 --queue 7 --timeout 8"
    for more in ("", "--concurrency 2 --poll 0.5 --drain 0 --io pread --no-access-log"):
        with pytest.raises(SystemExit) as done:
            main(["serve", "b=a.vqd", *options.split(), *more.split()])
        assert done.value.code == 0
    plain, full = seen
    limits = Limits(max_k=4, max_batch=5, max_body_bytes=6000, concurrency=2, queue=7, timeout_s=8)
    config = ServerConfig(
        indexes={"b": Path("a.vqd")},
        limits=limits,
        api_key="sixteen-characters",
        poll_s=0.5,
        drain_s=0,
        io="pread",
        access_log=False,
    )
    assert full == (config, "::1", 9, 3)
    assert plain[0].limits.concurrency == max(1, len(os.sched_getaffinity(0)) // 3)


def test_a_missing_library_is_one_sentence_with_the_install_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith("vqdistill.server")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(SystemExit) as done:
        main(["serve", "a.vqd"])
    assert done.value.code == 2
    assert capsys.readouterr().err == "vqdistill: the server needs uvicorn: pip install 'vqdistill[server]'\n"
    monkeypatch.delitem(sys.modules, "vqdistill.client", raising=False)
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(ImportError, match=r"^the client needs httpx: pip install 'vqdistill\[client\]'$"):
        importlib.import_module("vqdistill.client")
