"""The load of the benches counts what a server answers, drops and refuses."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any

import pytest
from serving import Seen, closed_loop, open_loop, post

REQUESTS = [post("/search", b"12345", "text/plain", "*/*")]


async def with_server(answers: Any, use: Any) -> tuple[Seen, int]:
    """Use a server whose answers are status lines with headers; None ends the connection. Returns requests as well."""
    count, talks = 0, []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        talks.append(asyncio.current_task())
        while await reader.readline():
            while (await reader.readline()).strip():
                pass
            assert await reader.readexactly(5) == b"12345"
            count += 1
            answer = answers(count)
            if answer is None:
                break
            writer.write(f"HTTP/1.1 {answer}\r\nContent-Length: 3\r\n\r\nabc".encode())
            await writer.drain()
            if "close" in answer:
                break
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    seen = await use(server.sockets[0].getsockname())
    server.close()
    await asyncio.gather(*talks)
    return seen, count


def test_a_closed_loop_counts_all_outcomes() -> None:
    kinds = ["200 OK", "429 Full", "200 OK\r\nConnection: close", None]
    seen, count = asyncio.run(
        with_server(lambda at: kinds[at % 4], lambda address: closed_loop(address, REQUESTS, 3, 0.2))
    )
    assert sum(seen.statuses.values()) == count > 40
    assert set(seen.statuses) == {200, 429, "lost"}
    assert abs(seen.statuses[200] - count / 2) <= 1 and abs(seen.statuses["lost"] - count / 4) <= 1
    assert len(seen.latencies) == seen.statuses[200]
    assert seen.per_second == pytest.approx(seen.statuses[200] / seen.seconds)


def test_an_open_loop_asks_as_often_as_it_says_and_counts_waits() -> None:
    def slow(at: int) -> str:
        if at == 10:
            time.sleep(0.3)  # the whole server, and what is due meanwhile waits
        return "200 OK"

    seen, count = asyncio.run(with_server(slow, lambda address: open_loop(address, REQUESTS, 200, 0.5)))
    assert count == seen.statuses[200] == 100
    assert seen.percentile(0.8) > 20


def test_percentiles_are_those_of_the_sorted_latencies() -> None:
    seen = Seen(latencies=[at / 1000 for at in range(100, 0, -1)], seconds=2.0)
    assert (seen.percentile(0.5), seen.percentile(0.99)) == (51.0, 100.0)
