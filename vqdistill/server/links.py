"""Messages between a router and the processes that hold shards: msgpack over sockets that both sides prove a key on."""

from __future__ import annotations

import os
import secrets
import socket
import struct
import sys
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.connection import Client, Connection, Listener, answer_challenge, deliver_challenge
from typing import Any, NamedTuple

import numpy as np

from vqdistill.errors import InvalidInput, SearchTimeout, VqdistillError
from vqdistill.wire import pack, pack_array, unpack, unpack_array

MAX_BYTES = 1 << 30
"""Of a message."""
_PROOF_S = 10
"""Within which the key is proved."""
_KINDS: dict[str, type[VqdistillError]] = {
    kind.__name__: kind for kind in (VqdistillError, InvalidInput, SearchTimeout)
}


class Address(NamedTuple):
    """Where a process listens."""

    host: str
    port: int
    local: str = ""
    """Name of a socket for processes of the same machine, to which messages cost half as much; "" = there is none"""

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class OtherGeneration(VqdistillError):
    """A process does not hold the generation that it was asked for."""


_KINDS[OtherGeneration.__name__] = OtherGeneration


class Link:
    """A connection on which one question is under way at a time."""

    def __init__(self, address: Address, key: bytes) -> None:
        self._connection = _connected(address, key)
        _send_at_once(self._connection)

    def ask(self, question: Mapping[str, Any]) -> None:
        """Send a question; raises OSError if the other side is gone."""
        self._connection.send_bytes(encode(question))

    def answer(self, timeout_s: float | None) -> dict[str, Any]:
        """Wait for the answer.

        Raises
        ------
        OSError, EOFError
            If the other side is gone, or has not answered in time.
        VqdistillError
            What the other side has raised.
        """
        if not self._connection.poll(timeout_s):
            raise TimeoutError(f"no answer within {timeout_s} s")
        return raised(decode(self._connection.recv_bytes(MAX_BYTES)))

    def fileno(self) -> int:
        """Return the descriptor of the socket."""
        return self._connection.fileno()

    def close(self) -> None:
        """Close the connection."""
        with suppress(OSError):
            self._connection.close()


def _connected(address: Address, key: bytes) -> Connection:
    if address.local:
        with suppress(OSError):  # on another machine nobody listens there
            return _require_socket(Client(f"\0{address.local}", "AF_UNIX", authkey=key))
    return _require_socket(Client((address.host, address.port), authkey=key))


def _require_socket(connection: Any) -> Connection:
    assert isinstance(connection, Connection), "no pipe of Windows"
    return connection


def listeners(host: str, backlog: int) -> tuple[Address, list[Listener]]:
    """Listen at a free port of `host`, and on Linux at a name for processes of the same machine.

    The name is in no file system, and so needs not be removed.
    """
    found = [Listener((host, 0), backlog=backlog)]
    address = Address(str(found[0].address[0]), int(found[0].address[1]))
    if sys.platform == "linux":
        address = address._replace(local=f"vqdistill-{secrets.token_hex(16)}")
        found.append(Listener(f"\0{address.local}", "AF_UNIX", backlog=backlog))
    return address, found


def wake(listener: Listener) -> None:
    """End its wait for somebody."""
    where: Any = listener.address
    with suppress(OSError), socket.socket(socket.AF_INET if isinstance(where, tuple) else socket.AF_UNIX) as caller:
        caller.settimeout(1.0)
        caller.connect(where)


def prove(connection: Connection, key: bytes) -> None:
    """Let in who proves the key, in time, and prove it; raises OSError, EOFError or AuthenticationError if not."""
    _set(connection, socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", _PROOF_S, 0))
    deliver_challenge(connection, key)
    answer_challenge(connection, key)
    _set(connection, socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 0))
    _send_at_once(connection)


def _send_at_once(connection: Connection) -> None:
    """Do not have the ends of messages wait for more."""
    with socket.socket(fileno=os.dup(connection.fileno())) as held:
        if held.family != socket.AF_UNIX:
            held.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _set(connection: Connection, level: int, option: int, value: int | bytes) -> None:
    with socket.socket(fileno=os.dup(connection.fileno())) as held:
        held.setsockopt(level, option, value)


def encode(message: Mapping[str, Any]) -> bytes:
    """Write a message, whose values may be arrays."""
    return pack(
        {name: pack_array(value) if isinstance(value, np.ndarray) else value for name, value in message.items()}
    )


def decode(data: bytes) -> dict[str, Any]:
    """Read a message back.

    Raises
    ------
    InvalidInput
        If it is none.
    """
    message = unpack(data)
    if not isinstance(message, dict) or not all(isinstance(name, str) for name in message):
        raise InvalidInput(f"a message must be a map, got {type(message).__name__}")
    return {
        name: unpack_array(value, name) if isinstance(value, dict) and "dtype" in value else value
        for name, value in message.items()
    }


def refusal(error: VqdistillError) -> dict[str, Any]:
    """Return the answer that stands for an error."""
    kind = next((name for name, of in reversed(_KINDS.items()) if isinstance(error, of)), VqdistillError.__name__)
    return {"error": kind, "sentence": str(error)}


def raised(answer: dict[str, Any]) -> dict[str, Any]:
    """Return an answer, or raise what it stands for."""
    if "error" not in answer:
        return answer
    raise _KINDS.get(answer["error"], VqdistillError)(answer.get("sentence", ""))
