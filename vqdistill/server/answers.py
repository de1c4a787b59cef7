"""From the result of a search to the bytes of a response, in the representation that Accept asks for."""

from __future__ import annotations

import io
from functools import lru_cache
from http import HTTPStatus

import numpy as np
from fastapi.responses import Response
from pydantic_core import to_json

from vqdistill.server.bodies import media_type
from vqdistill.server.problems import Problem
from vqdistill.types import Hits
from vqdistill.wire import JSON, MSGPACK, NPY, pack_hits


@lru_cache(maxsize=64)
def accepted(header: str | None) -> str:
    """Return which of JSON, msgpack and npy the client likes best; JSON where it does not care.

    Raises
    ------
    Problem
        If it wants none of them (406).
    """
    offers = {JSON: (JSON, "application/*", "*/*"), MSGPACK: (MSGPACK,), NPY: (NPY,)}
    best, liking = None, 0.0
    for part in (header or "*/*").split(","):
        wanted = media_type(part)
        quality = _quality(part)
        for offer, names in offers.items():
            if wanted in names and quality > liking:
                best, liking = offer, quality
    if best is None:
        wanted = ", ".join(offers)
        raise Problem(HTTPStatus.NOT_ACCEPTABLE, f"responses are of {wanted}, but {(header or '')[:60]!r} is accepted")
    return best


def _quality(part: str) -> float:
    for parameter in part.split(";")[1:]:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0


class Answer(Response):
    """The response to a search; making one that might have any headers takes nearly three times as long."""

    def __init__(self, body: bytes, kind: str) -> None:
        self.status_code, self.background, self.body = 200, None, body
        self.raw_headers = [(b"content-length", b"%d" % len(body)), (b"content-type", kind.encode())]


def encode(hits: Hits, kind: str) -> Response:
    """Return the response that holds the result of a search; one of less than all rows says so, in the head as well."""
    response = _encoded(hits, kind)
    if hits.searched < 1:
        response.headers["X-Vqdistill-Searched"] = f"{hits.searched:.6f}"
    return response


def _encoded(hits: Hits, kind: str) -> Response:
    if kind == MSGPACK:
        return Answer(pack_hits(hits), MSGPACK)
    if kind == NPY:
        return Answer(_npy(hits), NPY)
    lists = {name: getattr(hits, name).tolist() for name in ("scores", "ids", "rows", "work")}
    degraded = {"degraded": True, "searched": hits.searched} if hits.searched < 1 else {}
    return Answer(to_json(lists | {"stats": hits.stats} | degraded, inf_nan_mode="null"), JSON)


def _npy(hits: Hits) -> bytes:
    """Records (q, k) of score, id and row."""
    records = np.empty(hits.scores.shape, [("score", "<f4"), ("id", hits.ids.dtype.str), ("row", "<i8")])
    records["score"], records["id"], records["row"] = hits.scores, hits.ids, hits.rows
    file = io.BytesIO()
    np.lib.format.write_array(file, records, allow_pickle=False)
    return file.getvalue()
