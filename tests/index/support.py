"""Small indexes for the tests, and tools that damage them on purpose."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vqdistill.index.files import FileOps
from vqdistill.index.manifest import Manifest
from vqdistill.index.policy import SearchPolicy
from vqdistill.index.runs import RunLog
from vqdistill.index.spec import CRC_BYTES, PAGE, Layout, encode_current, parse_current
from vqdistill.index.writer import MEMORY_BYTES, IndexWriter
from vqdistill.model.adapter import QueryAdapter
from vqdistill.model.ivfpq import IvfPqModel
from vqdistill.types import Codes, Metric

INDEX_ID = bytes(range(16))
PLAN = {"passes": ["resolve", "fit_budget"], "ram_bytes": 4096}
CALIBRATED = SearchPolicy(
    nprobe=3,
    refine=10,
    coverage=0.95,
    rungs=((0.5, 8.0), (0.95, 1.5), (0.99, 0.25)),
    temperature=0.125,
    confidence=0.99,
    error=0.5,
)
"""A policy with everything that can be calibrated."""
REPORT = {"held_out": 0.5, "name": "Bäume"}


@dataclass(frozen=True)
class Sample:
    """What goes into an index, in input order."""

    model: IvfPqModel
    codes: Codes
    x: np.ndarray
    ids: Any
    dense: str
    ids_kind: str
    tables: str = "f32"

    @property
    def search(self) -> SearchPolicy:
        if self.dense == "none":
            return SearchPolicy(nprobe=1, refine=0)
        return replace(CALIBRATED, nprobe=1)

    @property
    def order(self) -> np.ndarray:
        """Input row of each position, by a plain sort that shares nothing with the writer's."""
        return np.array(sorted(range(len(self.x)), key=lambda row: (int(self.codes.lists[row]), row)), dtype=np.int64)


def make_model(
    rng: np.random.Generator, d: int, nlist: int, m: int, dsub: int, metric: str = "ip", additive: bool = False,
    units: tuple[int, int] = (0, 0),
) -> IvfPqModel:  # fmt: skip
    def adapter(units: int) -> QueryAdapter | None:
        if units == 0:
            return None
        down, bias, up = array(units, d), array(units), array(d, units)
        return QueryAdapter(down=down, bias=bias, up=up, rank=units // 2, unit=metric == "cosine")

    def array(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    return IvfPqModel(
        metric=Metric(metric),
        residual=False,
        mean=array(d),
        coarse=array(nlist, d),
        router=array(nlist, d),
        rotation=array(0 if additive else m * dsub, d),
        codewords=array(m, 16, d if additive else dsub),
        doc_codewords=array(m, 16, d if additive else dsub),
        query_adapter=adapter(units[0]),
        verify_adapter=adapter(units[1]),
    )


def make_ids(kind: str, n: int) -> Any:
    if kind == "rows":
        return None
    if kind == "int64":
        return np.arange(n, dtype=np.int64) * -7 - 2
    return [f"dok-{row}-ä" if row % 3 else f"{row}" for row in range(n)]


def make_sample(
    *, n: int = 70, d: int = 5, nlist: int = 4, m: int = 4, dsub: int = 2, dense: str = "f16", ids: str = "str",
    metric: str = "ip", additive: bool = False, tables: str = "f32", units: tuple[int, int] = (0, 0), seed: int = 0,
) -> Sample:  # fmt: skip
    rng = np.random.default_rng(seed)
    model = make_model(rng, d, nlist, m, dsub, metric, additive, units)
    lists = rng.integers(0, nlist, n).astype(np.int32)
    codes = rng.integers(0, 16, (n, m)).astype(np.uint8)
    x = rng.standard_normal((n, d)).astype(np.float32)
    return Sample(model, Codes(lists, codes), x, make_ids(ids, n), dense, ids, tables)


def write_sample(
    path: Path,
    sample: Sample,
    *,
    index_id: bytes = INDEX_ID,
    ops: FileOps | None = None,
    batch: int = 32,
    memory_bytes: int = MEMORY_BYTES,
    log: RunLog | None = None,
) -> Manifest:
    n, options = len(sample.x), {"dense": sample.dense, "tables": sample.tables, "ids": sample.ids_kind}
    options |= {"memory_bytes": memory_bytes, "log": log}
    with IndexWriter(path, sample.model, index_id=index_id, ops=ops, **options) as writer:
        for begin in range(writer.n, n, batch):
            part = slice(begin, min(n, begin + batch))
            ids = None if sample.ids is None else sample.ids[part]
            writer.add(ids, Codes(sample.codes.lists[part], sample.codes.codes[part]), sample.x[part])
        return writer.publish(PLAN, sample.search, REPORT)


def snapshot(path: Path) -> dict[str, bytes]:
    return {str(entry.relative_to(path)): entry.read_bytes() for entry in path.rglob("*") if entry.is_file()}


def flip(path: Path, offset: int, mask: int = 1) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ mask]))


def manifest_file(path: Path) -> Path:
    return path / parse_current((path / "CURRENT").read_bytes())[0]


def set_manifest(path: Path, data: bytes) -> None:
    """Replace the manifest's bytes, with a CURRENT that vouches for them."""
    file = manifest_file(path)
    file.write_bytes(data)
    (path / "CURRENT").write_bytes(encode_current(file.name, data))


def edit_manifest(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    doc = json.loads(manifest_file(path).read_bytes())
    edit(doc)
    set_manifest(path, json.dumps(doc, sort_keys=True, separators=(",", ":")).encode() + b"\n")


def set_payload(path: Path, kind: str, payload: bytes) -> None:
    """Replace a payload by another of the same length, with checksums that vouch for it."""
    file = path / f"{kind}-1.seg"
    old = file.read_bytes()
    file.write_bytes(old[:PAGE] + payload + old[PAGE + len(payload) :])
    crcs = [zlib.crc32(payload[at : at + CRC_BYTES]) for at in range(0, len(payload), CRC_BYTES)]

    def edit(doc: dict[str, Any]) -> None:
        assert doc["segments"][kind]["bytes"] == len(payload)
        doc["segments"][kind]["crc32"] = crcs

    edit_manifest(path, edit)


def leaves(doc: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all values of a JSON document but the document itself."""
    items: Any = doc.items() if isinstance(doc, Mapping) else enumerate(doc) if isinstance(doc, list) else ()
    return [path for key, value in items for path in [(*place, key), *leaves(value, (*place, key))]]


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def smallest_manifest() -> Manifest:
    """Return the manifest whose exact bytes are kept."""
    layout = Layout(n=1, d=1, nlist=1, m=2, dsub=1, dense="none", ids="rows")
    return Manifest(
        generation=1,
        index_id=bytes(range(16)),
        n=1,
        d=1,
        metric=Metric.L2,
        residual=False,
        nlist=1,
        m=2,
        dsub=1,
        codes="pq",
        dense="none",
        tables="f32",
        ids="rows",
        plan={},
        search=SearchPolicy(nprobe=1, refine=0),
        report={},
        segments={kind: replace(segment, crc32=(7,)) for kind, segment in layout.segments().items()},
        model_id=bytes(range(16, 32)),
        next_row=1,
    )
