"""Manifest: what one generation of an index is; written, and parsed without trusting it, without any I/O."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from vqdistill.config import BLOCK_ROWS
from vqdistill.errors import FormatTooNew, FormatTooOld, InvalidInput
from vqdistill.index.certificate import Certificate
from vqdistill.index.drift import Drift
from vqdistill.index.fields import Fields, is_int, parse_json, show
from vqdistill.index.policy import SearchPolicy
from vqdistill.index.spec import (
    ADAPTERS,
    CODES,
    DENSE,
    FEATURES,
    FORMAT,
    ID_BYTES,
    IDS,
    LEARNED,
    MANIFEST_MAX_BYTES,
    MAX_LEARN_DEPTH,
    MAX_LEARN_QUERIES,
    MAX_SETS,
    MAX_UNITS,
    OLDEST_VERSION,
    RESIDENT,
    ROW_KINDS,
    TABLES,
    VERSION,
    Layout,
    RowSet,
    Segment,
    is_manifest,
    name_generation,
)
from vqdistill.types import Metric


@dataclass(frozen=True, kw_only=True)
class AdapterShape:
    """What a manifest says of an adapter, whose arrays are segments."""

    units: int
    rank: int
    """Linear units, which come first."""

    @classmethod
    def parse(cls, entry: Fields) -> AdapterShape:
        """Read one value of the `adapters` object of a manifest.

        Raises
        ------
        CorruptIndex
            If anything is missing, superfluous or out of range.
        """
        entry.require_keys(frozenset({"units", "rank"}))
        units = entry.integer("units", 1, MAX_UNITS)
        return cls(units=units, rank=entry.integer("rank", 0, units))


@dataclass(frozen=True, kw_only=True)
class LearnedShape:
    """What a manifest says of the queries that the model has learned from, whose arrays are segments."""

    queries: int
    """0 = none are kept."""
    depth: int
    """Scores of each."""
    codes: bool
    """Whether codes serve them."""
    anchors: bool
    """Whether lists have anchors."""

    @classmethod
    def parse(cls, entry: Fields) -> LearnedShape:
        """Read the `learned` object of a manifest.

        Raises
        ------
        CorruptIndex
            If anything is missing, superfluous or out of range.
        """
        entry.require_keys(frozenset(cls.__dataclass_fields__))
        queries = entry.integer("queries", 0, MAX_LEARN_QUERIES)
        return cls(
            queries=queries,
            depth=entry.integer("depth", 1 if queries else 0, MAX_LEARN_DEPTH if queries else 0),
            codes=entry.boolean("codes"),
            anchors=entry.boolean("anchors"),
        )

    @property
    def layout(self) -> dict[str, Any]:
        """Fields of a `Layout`."""
        return {"learn_queries": self.queries, "learn_depth": self.depth, "anchors": self.anchors}


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
    def all_segments(self) -> tuple[Segment, ...]:
        """Every segment of the index."""
        added = (segment for rows in self.added for segment in rows.segments.values())
        return (*self.segments.values(), *added)

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
        version = _check_version(top)
        optional = {"learned"} if LEARNED in top.values["required_features"] else set()
        top.require_keys(_KEYS - {key for key, since in _SINCE.items() if version < since} | optional)
        generation = top.integer("generation", 1, 10**9 - 1)
        if not is_manifest(file) or generation != name_generation(file):
            top.fail("generation", generation, "the number in the file name")
        adapters = _parse_adapters(top.object("adapters")) if version > 2 else {}
        learned = LearnedShape.parse(top.object("learned")) if optional else None
        layout = _parse_layout(top, version, adapters)
        if learned is not None:
            layout = replace(layout, **learned.layout)
        metric, residual = _parse_scores(top, layout.codes)
        search = SearchPolicy.parse(
            top.object("search"), version=version, nlist=layout.nlist, has_dense=layout.dense != "none"
        )
        certified = top.object_or_null("certificate") if version > 3 else None
        added = _parse_added(top, layout, generation) if version > 3 else ()
        deleted = top.integer("deleted", 0, layout.n) if version > 3 else 0
        first = layout.n - sum(rows.n for rows in added)
        if first < 1:
            top.fail("n", layout.n, "more than the rows of all added sets")
        sizes = [first, *(rows.n for rows in added)]
        whole = replace(layout, n=first, deleted_blocks=sum(-(-size // BLOCK_ROWS) for size in sizes) if deleted else 0)
        drift = top.object_or_null("drift") if version > 3 else None
        return cls(
            generation=generation,
            index_id=bytes.fromhex(_parse_id(top, "index_id")),
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
            segments=_parse_segments(top.object("segments"), whole.arrays, generation),
            model_id=bytes.fromhex(_parse_id(top, "model_id")) if version > 3 else bytes(ID_BYTES),
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


def _parse_layout(top: Fields, version: int, adapters: Mapping[str, AdapterShape]) -> Layout:
    dense, ids = top.choice("dense", DENSE), top.choice("ids", IDS)
    m = top.integer("m", 2, 256)
    if m % 2:
        top.fail("m", m, "even")
    codes, dsub = top.choice("codes", CODES), top.integer("dsub", 1, 2**20)
    d_out = m * dsub if codes == "pq" else 0
    if top.integer("d_out", 0, 2**28) != d_out:
        top.fail("d_out", top.values["d_out"], f"{d_out}, m * dsub for pq codes and 0 for additive ones")
    tables = top.choice("tables", TABLES) if version > 1 else "f32"
    if tables != "f32" and codes == "pq":
        top.fail("tables", tables, "'f32' for pq codes")
    if tables == "i8" and version < 4:
        top.fail("tables", tables, "'f32' or 'f16' before version 4")
    units: dict[str, Any] = {f"{stage}_units": shape.units for stage, shape in adapters.items()}
    layout = Layout(
        n=top.integer("n", 1, 2**40),
        d=top.integer("d", 1, 2**20),
        nlist=top.integer("nlist", 1, 2**24),
        m=m,
        dsub=dsub,
        dense=dense,
        ids=ids,
        codes=codes,
        tables=tables,
        version=version,
        **units,
    )
    if codes == "additive" and dsub != layout.d:
        top.fail("dsub", dsub, f"d = {layout.d} for additive codes")
    return layout


def _parse_scores(top: Fields, codes: str) -> tuple[Metric, bool]:
    metric = Metric(top.choice("metric", tuple(metric.value for metric in Metric)))
    residual = top.boolean("residual")
    if residual and metric is Metric.L2:
        top.fail("residual", residual, "false under metric l2")
    if codes != "pq" and metric is Metric.L2:
        top.fail("codes", codes, "'pq' under metric l2")
    return metric, residual


def _check_version(top: Fields) -> int:
    readable = f"this vqdistill reads versions {OLDEST_VERSION} to {VERSION}"
    if top.values.get("format") != FORMAT:
        top.fail("format", top.values.get("format"), repr(FORMAT))
    version = top.integer("version", 0, 10**9)
    if version > VERSION:
        raise FormatTooNew(f"{top.file}: format version {version} is newer than this reader; {readable}")
    if version < OLDEST_VERSION:
        raise FormatTooOld(f"{top.file}: format version {version} is no longer supported; {readable}")
    features = top.values.get("required_features")
    if not isinstance(features, list) or not all(isinstance(feature, str) for feature in features):
        top.fail("required_features", features, "a list of strings")
    unknown = sorted(set(features) - FEATURES)
    if unknown:
        known = ", ".join(sorted(FEATURES)) or "none"
        raise FormatTooNew(f"{top.file}: required features {show(unknown)} are unknown; {readable}, features: {known}")
    return version


def _parse_adapters(entries: Fields) -> dict[str, AdapterShape]:
    unknown = sorted(set(entries.values) - set(ADAPTERS))
    if unknown:
        entries.fail(unknown[0], entries.values[unknown[0]], f"one of the stages {', '.join(ADAPTERS)}")
    return {stage: AdapterShape.parse(entries.object(stage)) for stage in ADAPTERS if stage in entries.values}


def _parse_id(top: Fields, key: str) -> str:
    return top.matching(key, f"[0-9a-f]{{{2 * ID_BYTES}}}", f"{2 * ID_BYTES} lower-case hex digits")


def _parse_added(top: Fields, layout: Layout, generation: int) -> tuple[RowSet, ...]:
    entries = top.objects("added", 0, MAX_SETS)
    sizes = []
    for entry in entries:
        entry.require_keys(frozenset({"n", "segments"}))
        sizes.append(entry.integer("n", 1, layout.n))
    first, sets = layout.n - sum(sizes), []
    for entry, size in zip(entries, sizes, strict=True):
        segments = _parse_segments(entry.object("segments"), replace(layout, n=size).row_arrays, generation)
        sets.append(RowSet(n=size, first=first, segments=segments))
        first += size
    return tuple(sets)


def _parse_segments(
    entries: Fields, arrays: Mapping[str, tuple[str, tuple[int, ...]]], generation: int
) -> dict[str, Segment]:
    entries.require_keys(frozenset(arrays))
    return {kind: parse_segment(entries.object(kind), kind, arrays[kind], generation) for kind in arrays}


def parse_segment(entry: Fields, kind: str, wanted: tuple[str, tuple[int, ...]], generation: int) -> Segment:
    """Read the manifest entry of a segment with a dtype and shape, of a generation up to the given one.

    Raises
    ------
    CorruptIndex
        If anything is missing, superfluous or other than it must be.
    """
    entry.require_keys(frozenset({"file", "dtype", "shape", "bytes", "crc32", "resident"}))
    file, dtype, shape = entry.values["file"], *wanted
    number = name_generation(file) if isinstance(file, str) else 0
    if file != f"{kind}-{number}.seg" or not 1 <= number <= generation:
        entry.fail("file", file, f"{kind}-<generation>.seg of a generation up to {generation}")
    if entry.values["dtype"] != dtype:
        entry.fail("dtype", entry.values["dtype"], repr(dtype))
    got = entry.values["shape"]
    if kind == "ids_bytes" and isinstance(got, list) and len(got) == 1 and is_int(got[0], 1, 2**56):
        shape = (got[0],)
    # Types first: in Python [1.0, True] == [1, 1].
    if not isinstance(got, list) or not all(is_int(size, 0, 2**62) for size in got) or tuple(got) != shape:
        entry.fail("shape", got, repr(list(shape)))
    segment = Segment(kind=kind, file=file, dtype=dtype, shape=shape, resident=kind in RESIDENT)
    if not is_int(entry.values["bytes"], segment.bytes, segment.bytes):
        entry.fail("bytes", entry.values["bytes"], f"{segment.bytes}, which is what the shape takes")
    if entry.boolean("resident") != segment.resident:
        entry.fail("resident", entry.values["resident"], str(segment.resident).lower())
    crcs, count = entry.values["crc32"], segment.checksums
    if not isinstance(crcs, list) or len(crcs) != count or not all(is_int(crc, 0, 2**32 - 1) for crc in crcs):
        entry.fail("crc32", crcs, f"a list of {count} integers below 2^32")
    return replace(segment, crc32=tuple(crcs))
