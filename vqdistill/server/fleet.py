"""FleetSearcher: an index whose shards are held by other processes, searched as if it were open here."""

from __future__ import annotations

import itertools
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import AuthenticationError
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from vqdistill.errors import InvalidInput, SearchTimeout, ShardsLost, VqdistillError
from vqdistill.index.gather import Gathering, Planner
from vqdistill.index.sharded import ShardedReader
from vqdistill.index.view import Options, named, prepared
from vqdistill.server.links import Address, Link, OtherGeneration
from vqdistill.types import F32Rows, Hits

_log = logging.getLogger(__name__)
_LOOK_S = 0.5
"""Between two looks at who is there."""
_OPENING_S = 300.0
"""Within which a process opens a generation."""
_FIRST = ("search", "find")
"""Questions that build on none before."""
Members = Callable[[], Mapping[int, Sequence[Address]]]
"""Tells where the processes listen that hold each part of an index."""


@dataclass(frozen=True)
class _Generation:
    """One generation of the index."""

    reader: ShardedReader
    """Of all shards, without their codes."""
    planner: Planner
    options: Options
    rows: tuple[int, ...]
    """Rows of each part."""

    @property
    def stamp(self) -> dict[str, Any]:
        """What questions of it say."""
        manifest = self.reader.manifest
        return {"index_id": manifest.index_id, "generation": manifest.generation}


@dataclass
class _Group:
    """The processes that hold one part, any of which may be asked."""

    key: bytes
    members: tuple[Address, ...] = ()
    idle: dict[Address, list[Link]] = field(default_factory=dict)
    turn: itertools.count[int] = field(default_factory=itertools.count)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def update(self, members: Sequence[Address]) -> None:
        """Take note of who is there now."""
        with self.lock:
            self.members = tuple(members)
            gone = [address for address in self.idle if address not in self.members]
            links = [link for address in gone for link in self.idle.pop(address)]
        for link in links:
            link.close()

    def in_turn(self) -> list[Address]:
        """All members, beginning with another one each time."""
        members, start = self.members, next(self.turn)
        return [members[(start + at) % len(members)] for at in range(len(members))]

    def take(self, address: Address) -> Link:
        """A link to a member; raises OSError if there is none to be had."""
        with self.lock:
            if links := self.idle.get(address):
                return links.pop()
        try:
            return Link(address, self.key)
        except (EOFError, AuthenticationError) as error:
            raise ConnectionError(str(error) or "it ended") from None

    def give(self, address: Address, link: Link) -> None:
        """Keep a link for the next question."""
        with self.lock:
            if address in self.members:
                self.idle.setdefault(address, []).append(link)
                return
        link.close()

    def forget(self, address: Address) -> None:
        """Drop a member that does not answer, until it is seen again."""
        self.update([member for member in self.members if member != address])


class FleetSearcher:
    """Searches an index whose parts are held elsewhere; safe under concurrent use by threads.

    Parameters
    ----------
    path : index in shards, which this process reads ids from
    parts : shards of each part
    members : where they are, looked at all the time
    key : that processes prove to each other
    on_lost : "fail" raises ShardsLost where a part has no member, "degrade" searches the others
    """

    def __init__(self, path: Path, parts: Sequence[range], members: Members, key: bytes, on_lost: str = "fail") -> None:
        self._parts, self._members, self._on_lost = tuple(parts), members, on_lost
        self._groups = [_Group(key) for _ in parts]
        self._now = self._opened(ShardedReader.open_shards(path, codes=False))
        self._look()
        threading.Thread(target=self._watch, daemon=True).start()

    @property
    def reader(self) -> ShardedReader:
        """The generation of the index that is searched; it has no codes."""
        return self._now.reader

    @property
    def lost(self) -> list[int]:
        """Parts that nobody holds."""
        return [number for number, group in enumerate(self._groups) if not group.members]

    @property
    def ready(self) -> bool:
        """Whether searches are answered."""
        lost = self.lost
        return not lost or (self._on_lost == "degrade" and len(lost) < len(self._groups))

    def search(
        self,
        queries: Any,
        k: int = 10,
        *,
        nprobe: int | None = None,
        coverage: float | None = None,
        refine: int | None = None,
        confidence: float | None = None,
        recall: float | None = None,
        allow: Any = None,
        timeout_s: float | None = None,
    ) -> Hits:
        """Find the k rows most similar to each query; as `Searcher.search`.

        Parameters
        ----------
        allow : external ids that may be found; None = all

        Raises
        ------
        InvalidInput, SearchTimeout, VqdistillError
            As `Searcher.search`.
        ShardsLost
            If a part cannot be reached, and lost ones are not to be passed over, or all are lost.
        """
        end = math.inf if timeout_s is None else time.monotonic() + timeout_s
        asked = (k, nprobe, coverage, refine, confidence, recall, 1, timeout_s)
        for last in (False, True):
            now = self._now
            try:
                return self._search(now, queries, asked, allow, end)
            except OtherGeneration:  # the index has gone on twice since
                if last or now is self._now:
                    raise
        raise AssertionError("the second attempt returns or raises")

    def _search(self, now: _Generation, queries: Any, asked: Sequence[Any], allow: Any, end: float) -> Hits:
        _, options = now.options.of(*asked)
        k, recall = asked[0], asked[5]
        if allow is not None and recall is not None:
            raise InvalidInput(f"recall must be None with allow: it was certified for all rows, got {recall}")
        rows, stamp = prepared(now.reader.manifest, queries), now.stamp
        k = k if recall is not None else options["k"]
        if allow is not None:
            stamp["allow"] = np.asarray(allow)
        with _Asking(self._groups, now, end) as asking:
            if len(self._groups) == 1:
                return self._found_by_one(now, {"ask": "search", "queries": rows} | options | stamp, asking, k)
            try:
                plan = now.planner.plan(rows, options, allow=allow, timeout_s=_left(end) or math.inf)
            except TimeoutError:
                raise SearchTimeout("the search took longer than it may") from None
            found = asking.all(dict.fromkeys(range(len(self._groups)), {"ask": "find"} | plan | stamp))
            self._require(found)
            return self._results(now, rows, options, asking, found, k)

    def _found_by_one(self, now: _Generation, question: dict[str, Any], asking: _Asking, k: int) -> Hits:
        """Have a process that holds all shards search as any other does."""
        found = asking.all({0: question})
        self._require(found)
        return _hits(now, found[0]["scores"], found[0]["positions"], k, found[0]["work"])

    def _results(
        self, now: _Generation, rows: F32Rows, options: dict[str, Any], asking: _Asking, found: dict[int, Any], k: int
    ) -> Hits:
        parts = sorted(found)
        gathering = Gathering(
            [tuple(found[number][name] for name in ("scores", "rescored", "whole", "work")) for number in parts]
        )
        work, exact = gathering.work, None
        if options["refine"]:
            reads = dict(zip(parts, gathering.reads, strict=True))
            scored = asking.all({number: {"ask": "score", "queries": rows, "reads": reads[number]} for number in parts})
            self._require(scored)
            if not scored.keys() >= reads.keys():  # lost in between: what is left begins again
                return self._results(now, rows, options, asking, {part: found[part] for part in scored}, k)
            exact = [scored[number]["scores"] for number in parts]
            for number in parts:
                work[:, 3:] += scored[number]["work"][:, 3:]
        stop = {name: options[name] for name in ("misses", "error") if name in options}
        scores, positions = gathering.choose(exact, options["k"], **stop)
        return _hits(now, scores, positions, k, work, sum(now.rows[number] for number in parts) / sum(now.rows))

    def _require(self, found: Mapping[int, Any]) -> None:
        lost = len(self._groups) - len(found)
        if lost and (self._on_lost == "fail" or not found):
            raise ShardsLost(f"{lost} of {len(self._groups)} parts of the index are lost for the moment; try again")

    def rung(self, recall: float, k: int = 10) -> Any:
        """As `Searcher.rung`."""
        return self._now.options.certificate(recall).choose(recall, k)

    def explain(self, query: Any, expected_ids: Any, k: int = 10, **options: Any) -> NoReturn:
        """Refuse: what is lost on the way is seen where the whole index is open."""
        raise InvalidInput("explain must be asked of a server that has all shards in one process, got one on Ray")

    def refresh(self) -> bool:
        """Search the newest generation from now on, when every part holds it; as `Searcher.refresh`.

        Part after part opens it beside the one that is searched; each answer is of one generation.
        """
        newest = self.reader.newest()
        if newest is self.reader:
            return False
        assert isinstance(newest, ShardedReader)
        following = self._opened(newest)
        for number, group in enumerate(self._groups):
            if not [address for address in group.members if _open(group, address, newest)]:
                raise ShardsLost(f"part {number} of {newest.path} cannot open generation {newest.manifest.generation}")
        self._now = following
        return True

    def _opened(self, reader: ShardedReader) -> _Generation:
        rows = tuple(sum(reader.shards.shards[number].rows for number in part) for part in self._parts)
        return _Generation(reader, Planner(reader), Options(reader.manifest), rows)

    def _watch(self) -> None:
        """Keep up with who is there, until the index is closed."""
        while not self.reader.closed:
            time.sleep(_LOOK_S)
            with suppress(Exception):  # whatever it is, the next look may find better
                self._look()

    def _look(self) -> None:
        present = self._members()
        for number, group in enumerate(self._groups):
            group.update(present.get(number, ()))


class _Asking:
    """The questions of one search, each to one member of a group, over links that no other search uses meanwhile."""

    def __init__(self, groups: Sequence[_Group], now: _Generation, end: float) -> None:
        self._groups, self._now, self._end = groups, now, end
        self._links: dict[int, tuple[Address, Link]] = {}
        self._first: dict[int, dict[str, Any]] = {}

    def __enter__(self) -> _Asking:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        for number, (address, link) in self._links.items():
            if error is None or isinstance(error, ShardsLost):
                self._groups[number].give(address, link)
            else:  # an answer may still be under way
                link.close()

    def all(self, questions: dict[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
        """Ask groups at the same time, and return the answers of those that are not lost."""
        self._first |= {number: question for number, question in questions.items() if question["ask"] in _FIRST}
        sent = {number: self._send(number, question) for number, question in questions.items()}
        answers: dict[int, dict[str, Any]] = {}
        for number, question in questions.items():
            answer = self._receive(number) if sent[number] else None
            if answer is None:
                answer = self._elsewhere(number, question)
            if answer is not None:
                answers[number] = answer
        return answers

    def _send(self, number: int, question: dict[str, Any]) -> bool:
        """Ask the member that a link is there to, or the next in turn; False if it is gone."""
        group = self._groups[number]
        if number not in self._links:
            members = group.in_turn() if group.members else []
            if not members:
                return False
            with self._dropped_if_gone(number, members[0]):
                self._links[number] = (members[0], group.take(members[0]))
        if number not in self._links:
            return False
        with self._dropped_if_gone(number, self._links[number][0]):
            self._links[number][1].ask(question | {"timeout_s": _left(self._end) or math.inf})
        return number in self._links

    def _receive(self, number: int) -> dict[str, Any] | None:
        """The answer of a member; None if it is gone."""
        address, link = self._links[number]
        with self._dropped_if_gone(number, address):
            try:
                return link.answer(_left(self._end))
            except OtherGeneration:
                return self._opened(number, link)
        return None

    def _opened(self, number: int, link: Link) -> dict[str, Any]:
        """Have a member, which began after a generation was superseded, open it, and ask again."""
        link.ask({"ask": "open", "manifest": self._now.reader.shards.to_bytes()})
        link.answer(_left(self._end))
        link.ask(self._first[number] | {"timeout_s": _left(self._end) or math.inf})
        return link.answer(_left(self._end))

    def _elsewhere(self, number: int, question: dict[str, Any]) -> dict[str, Any] | None:
        """Ask the other members, one after the other."""
        for _ in range(len(self._groups[number].members)):
            again = [] if question["ask"] in _FIRST else [self._first[number]]
            answer = None
            for each in [*again, question]:
                answer = self._receive(number) if self._send(number, each) else None
                if answer is None:
                    break
            if answer is not None:
                return answer
        return None

    def _dropped_if_gone(self, number: int, address: Address) -> _Dropping:
        return _Dropping(self, number, address)

    def drop(self, number: int, address: Address) -> None:
        """Forget a member that is gone, and the link to it."""
        self._groups[number].forget(address)
        if (held := self._links.pop(number, None)) is not None:
            held[1].close()


@dataclass(frozen=True)
class _Dropping:
    """Takes the loss of a member as such."""

    asking: _Asking
    number: int
    address: Address

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> bool:
        if isinstance(error, TimeoutError) and not isinstance(error, VqdistillError):
            raise SearchTimeout("the search took longer than it may") from None
        if not isinstance(error, (OSError, EOFError)) or isinstance(error, VqdistillError):
            return False
        _log.warning("%s is gone: %s", self.address, error or type(error).__name__)
        self.asking.drop(self.number, self.address)
        return True


def _hits(now: _Generation, scores: Any, positions: Any, k: int, work: Any, searched: float = 1.0) -> Hits:
    """Return the first k of what was found by external ids."""
    scores, positions = np.ascontiguousarray(scores[:, :k]), np.ascontiguousarray(positions[:, :k])
    return Hits(scores, *named(now.reader, positions), work, searched=searched)


def _open(group: _Group, address: Address, reader: ShardedReader) -> bool:
    """Have a member open a generation; False if it cannot."""
    try:
        link = group.take(address)
        link.ask({"ask": "open", "manifest": reader.shards.to_bytes()})
        link.answer(_OPENING_S)
    except (OSError, EOFError, VqdistillError) as error:
        _log.warning("%s cannot open the new generation: %s", address, error)
        return False
    group.give(address, link)
    return True


def _left(end: float) -> float | None:
    """Seconds until then; None = any number."""
    return None if math.isinf(end) else max(0.001, end - time.monotonic())
