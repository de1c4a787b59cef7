"""Files of an index: names, the arrays in them and how these are laid out, headers and CURRENT, without any I/O."""

from __future__ import annotations

import math
import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vqdistill.config import BLOCK_ROWS, KSUB
from vqdistill.errors import CorruptIndex
from vqdistill.index.byte_rows import SCALE_BYTES
from vqdistill.index.fields import show

FORMAT = "vqdistill"
VERSION = 4
"""Format version that is written, and the newest that is read."""
OLDEST_VERSION = 1
"""Oldest format version that is read."""
LEARNED = "learned"
"""Feature of an index that keeps queries it has learned from, or anchors of its lists, for rows that are added."""
FEATURES: frozenset[str] = frozenset({LEARNED})
"""Required features this reader knows. Persisted: never rename."""

PAGE = 4096
"""Bytes of a header page; payloads are zero-padded to a multiple of it."""
SHARDS = "SHARDS"
"""File of an index that is made of several; see `index.shardset`."""
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
MAX_LEARN_QUERIES, MAX_LEARN_DEPTH = 2**24, 2**10
"""Learn queries, and scores of each, at most."""
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
    learn_queries: int = 0
    """Learn queries that are kept."""
    learn_depth: int = 0
    """Scores of each."""
    anchors: bool = False
    """Whether lists have anchors."""
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
        if self.learn_queries:
            arrays["learn_queries"] = ("f2", (self.learn_queries, self.d))
            arrays["learn_scores"] = ("f4", (self.learn_queries, self.learn_depth))
        if self.anchors:
            arrays["anchors"] = ("f4", (self.nlist, self.d))
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


def _plain(value: Any) -> str:
    """Show a header field: text as text, other bytes (the index id) as hex."""
    if isinstance(value, bytes):
        text = value.rstrip(b"\0")
        return repr(text.decode("ascii")) if text.isalnum() or text.replace(b"_", b"").isalpha() else value.hex()
    return str(value)
