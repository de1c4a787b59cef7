"""Manifest: what one generation of an index is; written, and parsed without trusting it, without any I/O."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from vqdistill.config import BLOCK_ROWS
from vqdistill.errors import InvalidInput
from vqdistill.index.certificate import Certificate
from vqdistill.index.drift import Drift
from vqdistill.index.fields import Fields, parse_json
from vqdistill.index.manifest_parts import (
    AdapterShape,
    LearnedShape,
    check_version,
    parse_adapters,
    parse_added,
    parse_id,
    parse_layout,
    parse_scores,
    parse_segments,
)
from vqdistill.index.policy import SearchPolicy
from vqdistill.index.spec import (
    FORMAT,
    ID_BYTES,
    LEARNED,
    MANIFEST_MAX_BYTES,
    ROW_KINDS,
    VERSION,
    Layout,
    RowSet,
    Segment,
    is_manifest,
    name_generation,
)
from vqdistill.types import Metric


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """One generation of an index: what it is, and the files that it is made of."""

    generation: int
    index_id: bytes
    """Hash of plan, model and source; stands in every file so that two builds cannot be mixed."""
    n: int
    """Rows of all sets, deleted ones included."""
    d: int
    metric: Metric
    residual: bool
    nlist: int
    m: int
    dsub: int
    codes: str
    """"pq" or "additive"."""
    dense: str
    """"f32", "f16", "bf16", "i8" or "none"."""
    tables: str
    """A value of TABLES."""
    ids: str
    """"rows" (external ids are the row numbers), "int64" or "str"."""
    plan: Mapping[str, Any]
    """The compiler's plan; opaque here."""
    search: SearchPolicy
    """Defaults of a search."""
    report: Mapping[str, Any]
    """What the compiler measured; opaque here."""
    segments: Mapping[str, Segment]
    """By kind: those of the model, of the first set of rows, and `deleted`."""
    model_id: bytes
    """Hash of the model; rows of indexes with the same one can be merged."""
    added: tuple[RowSet, ...] = ()
    """Further sets of rows."""
    next_row: int
    """Rows are numbered below this, and rows to be added from here on."""
    deleted: int = 0
    """Rows that are deleted, and still there."""
    drift: Drift | None = None
    """How added rows fit the model; None where nothing was measured."""
    adapters: Mapping[str, AdapterShape] = field(default_factory=dict)
    """By stage, a name of ADAPTERS."""
    learned: LearnedShape | None = None
    """Queries and anchors that added rows are coded and assigned by; None = neither."""
    certificate: Certificate | None = None
    """What searches were measured to find; None where there were no queries to measure on."""
    version: int = VERSION
    """Format version of the files."""

    @property
    def d_out(self) -> int:
        """Rows of the rotation, which additive codes do not have."""
        return self.m * self.dsub if self.codes == "pq" else 0

    @property
    def file(self) -> str:
        """Name of the manifest's own file."""
        return f"manifest-{self.generation}.json"

    @property
    def layout(self) -> Layout:
        """Numbers from which the layouts of its sets follow."""
        more: dict[str, Any] = {} if self.learned is None else self.learned.layout
        more |= {f"{stage}_units": shape.units for stage, shape in self.adapters.items()}
        return Layout(
            n=self.n,
            d=self.d,
            nlist=self.nlist,
            m=self.m,
            dsub=self.dsub,
            dense=self.dense,
            ids=self.ids,
            codes=self.codes,
            tables=self.tables,
            version=self.version,
            **more,
        )

    @property
    def live(self) -> int:
        """Rows that a search may find."""
        return self.n - self.deleted

    @property
    def sets(self) -> tuple[RowSet, ...]:
        """All sets of rows, by rising position."""
        rows = {kind: segment for kind, segment in self.segments.items() if kind in ROW_KINDS}
        first = self.n - sum(rows_of.n for rows_of in self.added)
        return (RowSet(n=first, first=0, segments=rows), *self.added)

    @property
    def segments_by_set(self) -> tuple[Mapping[str, Segment], ...]:
        """Segments by kind: the model's with those of the first set, then those of each added set."""
        return (self.segments, *(rows.segments for rows in self.added))

    @property
    def all_segments(self) -> tuple[Segment, ...]:
        """Every segment of the index."""
        return tuple(segment for segments in self.segments_by_set for segment in segments.values())

    @property
    def resident_bytes(self) -> int:
        """Bytes that an open index holds in memory."""
        return sum(segment.bytes for segment in self.all_segments if segment.resident)

    def to_bytes(self) -> bytes:
        """Return the bytes of the manifest file: one line of sorted JSON.

        Raises
        ------
        ValueError, TypeError
            If `plan`, `search` or `report` is not JSON (NaN and infinity are not).
        """
        doc = {
            "format": FORMAT,
            "version": self.version,
            "required_features": [] if self.learned is None else [LEARNED],
            "generation": self.generation,
            "index_id": self.index_id.hex(),
            "n": self.n,
            "d": self.d,
            "metric": self.metric.value,
            "residual": self.residual,
            "nlist": self.nlist,
            "m": self.m,
            "dsub": self.dsub,
            "d_out": self.d_out,
            "codes": self.codes,
            "dense": self.dense,
            "tables": self.tables,
            "ids": self.ids,
            "adapters": {stage: asdict(shape) for stage, shape in self.adapters.items()},
            "plan": self.plan,
            "search": self.search.to_json(),
            "report": self.report,
            "certificate": None if self.certificate is None else self.certificate.to_json(),
            "segments": {kind: segment.to_json() for kind, segment in self.segments.items()},
        }
        if self.version > 3:
            doc |= {
                "model_id": self.model_id.hex(),
                "next_row": self.next_row,
                "deleted": self.deleted,
                "drift": None if self.drift is None else self.drift.to_json(),
                "added": [
                    {"n": rows.n, "segments": {kind: segment.to_json() for kind, segment in rows.segments.items()}}
                    for rows in self.added
                ],
            }
        if self.learned is not None:
            doc["learned"] = asdict(self.learned)
        return json.dumps(doc, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"

    @classmethod
    def parse(cls, data: bytes, file: str) -> Manifest:
        """Read a manifest whose checksum is known to be right, trusting nothing else in it.

        Parameters
        ----------
        data : content of the file, at most MANIFEST_MAX_BYTES
        file : its name in the index, which messages begin with

        Raises
        ------
        FormatTooNew, FormatTooOld
            If the version is outside OLDEST_VERSION..VERSION, or a required feature is unknown.
        CorruptIndex
            If anything is missing, superfluous, out of range or contradictory.
        """
        top = Fields(parse_json(data, file), file)
        version = check_version(top)
        optional = {"learned"} if LEARNED in top.values["required_features"] else set()
        top.require_keys(_KEYS - {key for key, since in _SINCE.items() if version < since} | optional)
        generation = top.integer("generation", 1, 10**9 - 1)
        if not is_manifest(file) or generation != name_generation(file):
            top.fail("generation", generation, "the number in the file name")
        adapters = parse_adapters(top.object("adapters")) if version > 2 else {}
        learned = LearnedShape.parse(top.object("learned")) if optional else None
        layout = parse_layout(top, version, adapters)
        if learned is not None:
            layout = replace(layout, **learned.layout)
        metric, residual = parse_scores(top, layout.codes)
        search = SearchPolicy.parse(
            top.object("search"), version=version, nlist=layout.nlist, has_dense=layout.dense != "none"
        )
        certified = top.object_or_null("certificate") if version > 3 else None
        added = parse_added(top, layout, generation) if version > 3 else ()
        deleted = top.integer("deleted", 0, layout.n) if version > 3 else 0
        first = layout.n - sum(rows.n for rows in added)
        if first < 1:
            top.fail("n", layout.n, "more than the rows of all added sets")
        sizes = [first, *(rows.n for rows in added)]
        whole = replace(layout, n=first, deleted_blocks=sum(-(-size // BLOCK_ROWS) for size in sizes) if deleted else 0)
        drift = top.object_or_null("drift") if version > 3 else None
        return cls(
            generation=generation,
            index_id=parse_id(top, "index_id"),
            n=layout.n,
            d=layout.d,
            metric=metric,
            residual=residual,
            nlist=layout.nlist,
            m=layout.m,
            dsub=layout.dsub,
            codes=layout.codes,
            dense=layout.dense,
            tables=layout.tables,
            ids=layout.ids,
            plan=top.object("plan").values,
            search=search,
            report=top.object("report").values,
            segments=parse_segments(top.object("segments"), whole.arrays, generation),
            model_id=parse_id(top, "model_id") if version > 3 else bytes(ID_BYTES),
            added=added,
            next_row=top.integer("next_row", layout.n, 2**62) if version > 3 else layout.n,
            deleted=deleted,
            drift=None if drift is None else Drift.parse(drift),
            adapters=adapters,
            learned=learned,
            certificate=None
            if certified is None
            else Certificate.parse(certified, n=layout.n, nlist=layout.nlist, policy=search),
            version=version,
        )


def read_back(manifest: Manifest) -> Manifest:
    """Read a manifest as a reader will, so that nothing is published that one would refuse.

    Raises
    ------
    InvalidInput
        If it is larger than a reader takes.
    ValueError, TypeError, CorruptIndex
        As `Manifest.to_bytes` and `parse`.
    """
    data = manifest.to_bytes()
    if len(data) > MANIFEST_MAX_BYTES:
        raise InvalidInput(f"the manifest must have at most {MANIFEST_MAX_BYTES} bytes, got {len(data)}")
    return Manifest.parse(data, manifest.file)


_KEYS = frozenset(Manifest.__dataclass_fields__) - {"learned"} | {"format", "version", "required_features", "d_out"}
"""Keys of every manifest of the newest version; `learned` comes with the feature of that name."""
_SINCE = {"tables": 2, "adapters": 3} | dict.fromkeys(
    ("certificate", "model_id", "added", "next_row", "deleted", "drift"), 4
)
"""Keys by the version that brought them."""
