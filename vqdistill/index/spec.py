"""What the files of an index must say: manifest, segments and headers are parsed and checked here, without any I/O."""

from __future__ import annotations

import json
import math
import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from vqdistill.config import BLOCK_ROWS, KSUB
from vqdistill.errors import CorruptIndex, FormatTooNew, FormatTooOld
from vqdistill.index.byte_rows import SCALE_BYTES
from vqdistill.index.certificate import Certificate
from vqdistill.index.drift import Drift
from vqdistill.index.fields import Fields, is_int, parse_json, show
from vqdistill.index.policy import SearchPolicy
from vqdistill.types import Metric

FORMAT = "vqdistill"
VERSION = 4
"""Format version that is written, and the newest that is read."""
OLDEST_VERSION = 1
"""Oldest format version that is read."""
FEATURES: frozenset[str] = frozenset()
"""Required features this reader knows."""

PAGE = 4096
"""Bytes of a header page; payloads are zero-padded to a multiple of it."""
CRC_BYTES = 1 << 20
"""Payload bytes under one checksum of the manifest."""
MANIFEST_MAX_BYTES = 64 << 20
"""Checked before a manifest is parsed; room for the checksums of about 6 TB."""
ID_BYTES = 16
"""Length of an index id."""

ITEM_BYTES = {"u1": 1, "u2": 2, "u4": 4, "f2": 2, "f4": 4, "i8": 8}
"""Element types of segments, little-endian. Persisted: never rename."""
CODES = ("pq", "additive")
"""What codes stand for. Persisted: never rename."""
DENSE = ("f32", "f16", "bf16", "i8", "none")
"""Dense row encodings. Persisted: never rename."""
TABLES = ("f32", "f16", "i8")
"""Element types of router, coarse and codewords. Persisted: never rename."""
IDS = ("rows", "int64", "str")
"""Kinds of external ids. Persisted: never rename."""
ADAPTERS = ("query", "verify")
"""Stages that queries may be adapted for. Persisted: never rename."""
TABLE_ROWS = ("router", "coarse", "codewords")
"""Segments of which tables "i8" keeps rows of bytes."""
MAX_UNITS = 2**16
"""Units of an adapter at most."""
ROW_KINDS = frozenset(
    {"codes", "list_offsets", "rows", "dense", "ids", "ids_offsets", "ids_bytes", "id_keys", "id_order"}
)
"""Segments of a set of rows; an index has each of the others once."""
MAX_SETS = 1000
"""Sets of rows that an index may have beside the first."""
RESIDENT = frozenset({"codes", "list_offsets", "router", "coarse", "rotation", "codewords", "mean", "deleted"}) | {
    f"{stage}_{part}" for stage in ADAPTERS for part in ("down", "bias", "up")
}
"""Segments that an open index holds in memory; the others stay on disk."""

_MAGIC = b"\x89VQD\r\n\x1a\n"
_HEADER = struct.Struct("<8sII16s16s4sI4QQ")
_CURRENT = re.compile(rb"(manifest-[1-9][0-9]{0,8}\.json) ([0-9a-f]{8})\n")
_MANIFEST_NAME = re.compile(r"manifest-([1-9][0-9]{0,8})\.json")
_TEMPORARY_NAME = re.compile(r".+\.tmp-[0-9a-f]{12}")
_SEGMENT_NAME = re.compile(r"([a-z0-9_]+)-([1-9][0-9]{0,8})\.seg")


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One array of the index in a file of its own."""

    kind: str
    file: str
    """Plain name `<kind>-<generation>.seg`, no path."""
    dtype: str
    """A key of ITEM_BYTES."""
    shape: tuple[int, ...]
    resident: bool
    crc32: tuple[int, ...] = ()
    """zlib.crc32 of each CRC_BYTES of the payload; the last one may cover less."""

    @property
    def bytes(self) -> int:
        """Payload bytes."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    @property
    def row_bytes(self) -> int:
        """Payload bytes of one element along the first axis."""
        return math.prod(self.shape[1:]) * ITEM_BYTES[self.dtype]

    @property
    def file_bytes(self) -> int:
        """Exact size of the file: header page, payload, zero padding to a whole page."""
        return PAGE + -(-self.bytes // PAGE) * PAGE

    @property
    def checksums(self) -> int:
        """Number of checksums that the payload takes."""
        return -(-self.bytes // CRC_BYTES)

    @property
    def numpy_dtype(self) -> str:
        """NumPy name of the element type."""
        return f"<{self.dtype}"

    @property
    def generation(self) -> int:
        """Generation that wrote the file, as its name says."""
        return int(self.file[len(self.kind) + 1 : -len(".seg")])

    def to_json(self) -> dict[str, Any]:
        """Return the manifest entry."""
        return {
            "file": self.file,
            "dtype": self.dtype,
            "shape": list(self.shape),
            "bytes": self.bytes,
            "crc32": list(self.crc32),
            "resident": self.resident,
        }


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Numbers from which the kind, dtype and shape of every segment follow."""

    n: int
    d: int
    nlist: int
    m: int
    dsub: int
    dense: str
    ids: str
    codes: str = "pq"
    tables: str = "f32"
    """Element type of router, coarse and codewords; the matrices of adapters are f16 beside i8."""
    query_units: int = 0
    """Units of the adapter of queries; 0 = none."""
    verify_units: int = 0
    """Units of the adapter of queries that verify; 0 = none."""
    id_bytes: int = 0
    """Bytes of all string ids together; 0 for other kinds of ids."""
    deleted_blocks: int = 0
    """Blocks of the rows of all sets; 0 where no row is deleted."""
    version: int = VERSION
    """Format version of the files."""

    @property
    def row_arrays(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Those of `arrays` that belong to a set of rows."""
        return {kind: array for kind, array in self.arrays.items() if kind in ROW_KINDS}

    @property
    def arrays(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Dtype and shape by segment kind."""
        nblocks = -(-self.n // BLOCK_ROWS)
        table = "f4" if self.tables == "f32" else "f2"

        def of_rows(*shape: int) -> tuple[str, tuple[int, ...]]:
            """Router, coarse or codewords: rows of bytes have a scale in front."""
            return ("u1", (*shape[:-1], SCALE_BYTES + shape[-1])) if self.tables == "i8" else (table, shape)

        arrays: dict[str, tuple[str, tuple[int, ...]]] = {
            "codes": ("u1", (nblocks, self.m // 2, BLOCK_ROWS)),
            "list_offsets": ("i8", (self.nlist + 1,)),
            "router": of_rows(self.nlist, self.d),
            "codewords": of_rows(self.m, KSUB, self.dsub),
            "mean": ("f4", (self.d,)),
            "coarse": of_rows(self.nlist, self.d),
            "doc_codewords": ("f4", (self.m, KSUB, self.dsub)),
            "rows": ("i8", (self.n,)),
        }
        if self.version >= 4:
            arrays["id_keys"] = arrays["id_order"] = ("i8", (self.n,))
        if self.deleted_blocks:
            arrays["deleted"] = ("u4", (self.deleted_blocks,))
        dense: dict[str, tuple[str, int]] = {
            "f32": ("f4", self.d),
            "f16": ("f2", self.d),
            "bf16": ("u2", self.d),
            "i8": ("u1", SCALE_BYTES + self.d),
        }
        for stage, units in (("query", self.query_units), ("verify", self.verify_units)):
            if units:
                arrays[f"{stage}_down"] = (table, (units, self.d))
                arrays[f"{stage}_bias"] = ("f4", (units,))
                arrays[f"{stage}_up"] = (table, (self.d, units))
        if self.codes == "pq":
            arrays["rotation"] = ("f4", (self.m * self.dsub, self.d))
        elif self.version >= 3:
            arrays["doc_space"] = ("f4", (self.d, self.d))
        if self.dense != "none":
            dtype, width = dense[self.dense]
            arrays["dense"] = (dtype, (self.n, width))
        if self.ids == "int64":
            arrays["ids"] = ("i8", (self.n,))
        if self.ids == "str":
            arrays["ids_offsets"] = ("i8", (self.n + 1,))
            arrays["ids_bytes"] = ("u1", (self.id_bytes,))
        return arrays

    def segments(self, generation: int = 1) -> dict[str, Segment]:
        """Return every segment, without checksums, as `generation` would write it."""
        return {
            kind: Segment(
                kind=kind, file=f"{kind}-{generation}.seg", dtype=dtype, shape=shape, resident=kind in RESIDENT
            )
            for kind, (dtype, shape) in self.arrays.items()
        }

    @property
    def resident_bytes(self) -> int:
        """Bytes that an open index holds in memory: the payloads of the resident segments, and nothing else."""
        return sum(segment.bytes for segment in self.segments().values() if segment.resident)


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
class RowSet:
    """Rows in list order: those of the compile, or of later additions."""

    n: int
    """Rows, deleted ones included."""
    first: int
    """Position of the first row: those of the sets before come first."""
    segments: Mapping[str, Segment]
    """By kind, those of ROW_KINDS that the index has."""

    @property
    def nblocks(self) -> int:
        """Blocks of codes, and of the bits of deleted rows."""
        return -(-self.n // BLOCK_ROWS)


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
            "required_features": [],
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
        top.require_keys(_KEYS - {key for key, since in _SINCE.items() if version < since})
        name = _MANIFEST_NAME.fullmatch(file)
        generation = top.integer("generation", 1, 10**9 - 1)
        if name is None or generation != int(name[1]):
            top.fail("generation", generation, "the number in the file name")
        adapters = _parse_adapters(top.object("adapters")) if version > 2 else {}
        layout = _parse_layout(top, version, adapters)
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
            certificate=None
            if certified is None
            else Certificate.parse(certified, n=layout.n, nlist=layout.nlist, policy=search),
            version=version,
        )


_KEYS = frozenset(Manifest.__dataclass_fields__) | {"format", "version", "required_features", "d_out"}
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
        **{f"{stage}_units": shape.units for stage, shape in adapters.items()},
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


def is_leftover(name: str) -> bool:
    """Whether a file name is one that a writer gives: of another generation, or of a writer that was killed."""
    return any(form.fullmatch(name) for form in (_MANIFEST_NAME, _SEGMENT_NAME, _TEMPORARY_NAME))


def is_manifest(name: str) -> bool:
    """Whether a file name is that of a manifest."""
    return _MANIFEST_NAME.fullmatch(name) is not None


def name_generation(name: str) -> int:
    """Return the generation in the name of a manifest or segment; 0 for other names."""
    found = _MANIFEST_NAME.fullmatch(name) or _SEGMENT_NAME.fullmatch(name)
    return 0 if found is None else int(found[found.lastindex or 0])


def encode_current(manifest: str, data: bytes) -> bytes:
    """Return the content of CURRENT that names the file `manifest` with the content `data`."""
    return f"{manifest} {zlib.crc32(data):08x}\n".encode("ascii")


def parse_current(data: bytes) -> tuple[str, int]:
    """Return the manifest's file name and the zlib.crc32 of its bytes.

    Raises
    ------
    CorruptIndex
        If `data` is anything but one line "manifest-<generation>.json <8 hex digits>".
    """
    found = _CURRENT.fullmatch(data)
    if found is None:
        raise CorruptIndex(f"CURRENT must be 'manifest-<generation>.json <crc32>', got {show(data)}")
    return found[1].decode("ascii"), int(found[2], 16)


def pack_header(segment: Segment, index_id: bytes, version: int = VERSION) -> bytes:
    """Return the header page (4096 bytes) of a segment; its last four bytes are the zlib.crc32 of those before."""
    shape = segment.shape + (0,) * (4 - len(segment.shape))
    kind, dtype = segment.kind.encode("ascii"), segment.dtype.encode("ascii")
    fields = (_MAGIC, version, segment.generation, index_id, kind, dtype, len(segment.shape), *shape, segment.bytes)
    page = _HEADER.pack(*fields).ljust(PAGE - 4, b"\0")
    return page + struct.pack("<I", zlib.crc32(page))


def check_header(page: bytes, segment: Segment, index_id: bytes, version: int = VERSION) -> None:
    """Require that `page` is the header of `segment` in a format version, byte for byte.

    Raises
    ------
    CorruptIndex
        If it is not; the message names the first field that differs.
    """
    wanted = pack_header(segment, index_id, version)
    if page == wanted:
        return
    if page[: len(_MAGIC)] != _MAGIC:
        raise CorruptIndex(f"{segment.file}: magic must be {_MAGIC!r}, got {page[: len(_MAGIC)]!r}")
    stored, actual = struct.unpack("<I", page[-4:])[0], zlib.crc32(page[:-4])
    if stored != actual:
        raise CorruptIndex(f"{segment.file}: header crc32 must be {actual:08x}, got {stored:08x}")
    names = ("magic", "version", "generation", "index id", "kind", "dtype", "dimensions", *["shape"] * 4, "bytes")
    for name, got, want in zip(names, _HEADER.unpack_from(page), _HEADER.unpack_from(wanted), strict=True):
        if got != want:
            raise CorruptIndex(f"{segment.file}: header {name} must be {_plain(want)}, got {_plain(got)}")
    raise CorruptIndex(f"{segment.file}: header bytes {_HEADER.size}..{PAGE - 5} must be zero, got other values")


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
    name = _SEGMENT_NAME.fullmatch(file) if isinstance(file, str) else None
    if name is None or name[1] != kind or int(name[2]) > generation:
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


def _plain(value: Any) -> str:
    """Show a header field: text as text, other bytes (the index id) as hex."""
    if isinstance(value, bytes):
        text = value.rstrip(b"\0")
        return repr(text.decode("ascii")) if text.isalnum() or text.replace(b"_", b"").isalpha() else value.hex()
    return str(value)
