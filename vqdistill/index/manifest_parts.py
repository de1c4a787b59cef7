"""Parts of a manifest: shapes of what is optional, the layout, segments and sets of rows; parsed, trusting nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from vqdistill.errors import FormatTooNew, FormatTooOld
from vqdistill.index.fields import Fields, is_int, show
from vqdistill.index.spec import (
    ADAPTERS,
    CODES,
    DENSE,
    FEATURES,
    FORMAT,
    ID_BYTES,
    IDS,
    MAX_LEARN_DEPTH,
    MAX_LEARN_QUERIES,
    MAX_SETS,
    MAX_UNITS,
    OLDEST_VERSION,
    RESIDENT,
    TABLES,
    VERSION,
    Layout,
    RowSet,
    Segment,
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


def parse_layout(top: Fields, version: int, adapters: Mapping[str, AdapterShape]) -> Layout:
    """Read what the arrays of an index follow from, of a manifest of this version; raises as `parse_segment`."""
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


def parse_scores(top: Fields, codes: str) -> tuple[Metric, bool]:
    """Read the metric, and whether codes are of residuals; raises as `parse_segment`."""
    metric = Metric(top.choice("metric", tuple(metric.value for metric in Metric)))
    residual = top.boolean("residual")
    if residual and metric is Metric.L2:
        top.fail("residual", residual, "false under metric l2")
    if codes != "pq" and metric is Metric.L2:
        top.fail("codes", codes, "'pq' under metric l2")
    return metric, residual


def check_version(top: Fields) -> int:
    """Return the version of a manifest that this reader understands.

    Raises
    ------
    FormatTooNew, FormatTooOld
        If the version is outside OLDEST_VERSION..VERSION, or a required feature is unknown.
    CorruptIndex
        If it is no manifest.
    """
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


def parse_adapters(entries: Fields) -> dict[str, AdapterShape]:
    """Read the adapters by their stages; raises as `parse_segment`."""
    unknown = sorted(set(entries.values) - set(ADAPTERS))
    if unknown:
        entries.fail(unknown[0], entries.values[unknown[0]], f"one of the stages {', '.join(ADAPTERS)}")
    return {stage: AdapterShape.parse(entries.object(stage)) for stage in ADAPTERS if stage in entries.values}


def parse_id(top: Fields, key: str) -> bytes:
    """Read an identity; raises as `parse_segment`."""
    return bytes.fromhex(top.matching(key, f"[0-9a-f]{{{2 * ID_BYTES}}}", f"{2 * ID_BYTES} lower-case hex digits"))


def parse_added(top: Fields, layout: Layout, generation: int) -> tuple[RowSet, ...]:
    """Read the sets of rows that were added to an index, which has `layout.n` with them; raises as `parse_segment`."""
    entries = top.objects("added", 0, MAX_SETS)
    sizes = []
    for entry in entries:
        entry.require_keys(frozenset({"n", "segments"}))
        sizes.append(entry.integer("n", 1, layout.n))
    first, sets = layout.n - sum(sizes), []
    for entry, size in zip(entries, sizes, strict=True):
        segments = parse_segments(entry.object("segments"), replace(layout, n=size).row_arrays, generation)
        sets.append(RowSet(n=size, first=first, segments=segments))
        first += size
    return tuple(sets)


def parse_segments(
    entries: Fields, arrays: Mapping[str, tuple[str, tuple[int, ...]]], generation: int
) -> dict[str, Segment]:
    """Read one segment for each of `arrays`, dtypes and shapes by kind; raises as `parse_segment`."""
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
