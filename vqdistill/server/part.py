"""PartServer: some shards of an index, and the socket at which routers ask for their share of searches."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from contextlib import suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any

import numpy as np

from vqdistill.errors import InvalidInput, SearchTimeout, VqdistillError
from vqdistill.index.gather import PLAN, Candidates, Part
from vqdistill.index.sharded import ShardedReader
from vqdistill.index.shardset import ShardSet, read_shards
from vqdistill.server.links import MAX_BYTES, OtherGeneration, decode, encode, listeners, prove, refusal, wake

_log = logging.getLogger(__name__)
_BACKLOG = 128
"""Routers that may wait to be let in."""
_SEARCH = ("k", "nprobe", "lift", "temperature", "refine", "misses", "error", "timeout_s")
_GENERATIONS = 2
"""That are held: the newest, and the one that searches under way may still ask for."""


class PartServer:
    """Answers routers in threads of its own until it is closed.

    Parameters
    ----------
    path : index in shards
    mine : shards that this process holds
    key : that routers must prove, and this process proves to them
    host : address to listen at
    concurrency : searches at a time; further ones wait
    io : see `IndexReader.engine`
    """

    def __init__(self, path: Path, mine: range, key: bytes, host: str, concurrency: int, io: str = "auto") -> None:
        self._path, self._mine, self._io = path, mine, io
        self._parts: OrderedDict[tuple[bytes, int], Part] = OrderedDict()
        self._opening = threading.Lock()
        self.places = threading.BoundedSemaphore(concurrency)
        """Held by searches at work."""
        self._busy_lock = threading.Lock()
        self.busy = 0
        """Searches at work or waiting."""
        self.connections: set[Connection] = set()
        """Of routers."""
        self._open(read_shards(path))
        self._key, self._closed = key, False
        self.address, self._listeners = listeners(host, _BACKLOG)
        """Where it listens."""
        self._threads = [threading.Thread(target=self._accept, args=(each,), daemon=True) for each in self._listeners]
        for thread in self._threads:
            thread.start()

    @property
    def alive(self) -> bool:
        """Whether routers are still let in."""
        return all(thread.is_alive() for thread in self._threads)

    def close(self) -> None:
        """Let nobody in any more; the index is closed when the last search of it lets go."""
        self._closed = True
        for listener in self._listeners:
            wake(listener)
            with suppress(OSError):
                listener.close()

    def _accept(self, listener: Listener) -> None:
        while not self._closed:
            with suppress(OSError):
                threading.Thread(target=self._serve, args=(listener.accept(),), daemon=True).start()

    def _serve(self, connection: Connection) -> None:
        """Answer one router until it leaves."""
        session = _Session(self)
        self.connections.add(connection)
        with connection, suppress(EOFError, OSError, AuthenticationError):
            prove(connection, self._key)
            while True:
                connection.send_bytes(encode(session.answer(connection.recv_bytes(MAX_BYTES))))
        self.connections.discard(connection)

    def part(self, index_id: bytes, generation: int) -> Part:
        """Return the shards at a generation.

        Raises
        ------
        OtherGeneration
            If it is not held.
        """
        found = self._parts.get((index_id, generation))
        if found is None:
            raise OtherGeneration(f"generation {generation} of {self._path} is not open here")
        return found

    def open_generation(self, manifest: bytes) -> None:
        """Open the generation that a manifest of the set tells of, unless it is held."""
        shards = ShardSet.parse(manifest)
        with self._opening:
            if (shards.index_id, shards.generation) not in self._parts:
                self._open(shards)

    def _open(self, shards: ShardSet) -> None:
        older = next(reversed(self._parts.values())).reader if self._parts else None
        reader = ShardedReader.open_shards(self._path, shards, self._mine, older=older)
        self._parts[shards.index_id, shards.generation] = Part(reader, self._io)
        while len(self._parts) > _GENERATIONS:  # closed when the last search of it lets go
            self._parts.popitem(last=False)

    def work(self, change: int) -> None:
        """Count a search that begins or ends."""
        with self._busy_lock:
            self.busy += change


class _Session:
    """What one connection asks, one question after the other."""

    def __init__(self, server: PartServer) -> None:
        self._server = server
        self._found: tuple[Part, Candidates] | None = None
        self._answers = {"search": self._search, "find": self._find, "score": self._score}

    def answer(self, data: bytes) -> dict[str, Any]:
        self._server.work(1)
        try:
            question = decode(data)
            kind = question.pop("ask", None)
            if kind == "open":
                self._server.open_generation(question["manifest"])
                return {}
            with self._server.places:
                return self._answers.get(kind, self._score)(question)
        except VqdistillError as error:
            return refusal(error)
        except TimeoutError:
            return refusal(SearchTimeout("the search took longer than it may"))
        except OSError as error:
            _log.error("rows cannot be read: %s", error)
            return refusal(VqdistillError("dense rows cannot be read"))
        except Exception as error:  # a defect, or a message that no router sends: its log says so, the router goes on
            _log.exception("a question could not be answered")
            return refusal(VqdistillError(f"{type(error).__name__}: {error}"))
        finally:
            self._server.work(-1)

    def _search(self, question: dict[str, Any]) -> dict[str, Any]:
        part = self._server.part(question["index_id"], question["generation"])
        options = {name: question[name] for name in _SEARCH if name in question}
        found = part.search(question["queries"], allow=question.get("allow"), threads=1, **options)
        return dict(zip(("scores", "positions", "work"), found, strict=True))

    def _find(self, question: dict[str, Any]) -> dict[str, Any]:
        part = self._server.part(question["index_id"], question["generation"])
        plan = {name: question[name] for name in PLAN}
        found = part.find(plan, allow=question.get("allow"), threads=1, timeout_s=question["timeout_s"])
        self._found = (part, found)
        return {"scores": found.scores, "rescored": found.rescored, "whole": found.whole, "work": found.work}

    def _score(self, question: dict[str, Any]) -> dict[str, Any]:
        if self._found is None:
            raise InvalidInput("rows are scored behind a question for candidates, got none before")
        part, found = self._found
        reads, timeout_s = np.ascontiguousarray(question["reads"]), question["timeout_s"]
        scores, work = part.score(question["queries"], found.positions, reads, threads=1, timeout_s=timeout_s)
        return {"scores": scores, "work": work}
