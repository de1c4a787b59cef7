"""The manifest of an index in shards: which generation of which indexes it is made of; parsed without trusting it."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from vqdistill.errors import CorruptIndex, FormatTooNew
from vqdistill.index.certificate import Certificate
from vqdistill.index.fields import Fields, parse_json, show
from vqdistill.index.files import FileOps, read_small, replace_file
from vqdistill.index.manifest import Manifest
from vqdistill.index.manifest_parts import parse_id
from vqdistill.index.policy import SearchPolicy
from vqdistill.index.spec import MANIFEST_MAX_BYTES, ROW_KINDS, SHARDS, is_manifest

FORMAT, VERSION = "vqdistill-shards", 1
MAX_SHARDS = 4096
_ROWS = 2**40
_MAX_BYTES = 4 << 20
_CRC = len("\n00000000\n")
_SHARED = ("version", "metric", "residual", "d", "nlist", "m", "dsub", "codes", "dense", "tables", "ids", "adapters")
"""Fields of a manifest that all shards have in common."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One index of the set, at one generation."""

    rows: int
    """Rows of it, deleted ones included."""
    first_row: int
    """Number of its first row in the whole."""
    manifest: str
    """Name of its manifest file."""
    crc32: int
    """zlib.crc32 of that file."""


@dataclass(frozen=True, kw_only=True)
class ShardSet:
    """One generation of an index in shards; shard i is the index in the folder `shard-<i>`."""

    generation: int
    index_id: bytes
    """Tells it from other indexes."""
    model_id: bytes
    """Of all shards."""
    search: Mapping[str, Any]
    """Defaults of a search of the whole, as `policy` reads them."""
    certificate: Mapping[str, Any] | None
    """What searches of the whole were measured to find, likewise."""
    shards: tuple[Shard, ...]

    @property
    def n(self) -> int:
        """Rows of all shards, deleted ones included."""
        return sum(shard.rows for shard in self.shards)

    def to_bytes(self) -> bytes:
        """Return the file: a line of sorted JSON, and its checksum."""
        doc = {
            "format": FORMAT,
            "version": VERSION,
            "generation": self.generation,
            "index_id": self.index_id.hex(),
            "model_id": self.model_id.hex(),
            "search": self.search,
            "certificate": self.certificate,
            "shards": [asdict(shard) | {"name": name_of(number)} for number, shard in enumerate(self.shards)],
        }
        text = json.dumps(doc, sort_keys=True, allow_nan=False, separators=(",", ":")).encode()
        return text + f"\n{zlib.crc32(text):08x}\n".encode()

    @classmethod
    def parse(cls, data: bytes) -> ShardSet:
        """Read what `to_bytes` gave, trusting nothing in it.

        Raises
        ------
        FormatTooNew
            If the version is unknown.
        CorruptIndex
            If anything is missing, superfluous, out of range or contradictory.
        """
        text, crc = data[:-_CRC], zlib.crc32(data[:-_CRC])
        if data[-_CRC:] != f"\n{crc:08x}\n".encode():
            raise CorruptIndex(f"{SHARDS}: the last line must be {crc:08x}, the crc32 of the first, got another")
        top = Fields(parse_json(text, SHARDS), SHARDS)
        if top.values.get("format") != FORMAT:
            top.fail("format", top.values.get("format"), repr(FORMAT))
        if (version := top.integer("version", 1, 10**9)) > VERSION:
            raise FormatTooNew(f"{SHARDS}: version {version} is newer than this reader, which reads {VERSION}")
        top.require_keys(frozenset(cls.__dataclass_fields__) | {"format", "version"})
        shards = tuple(_parse_shard(entry, number) for number, entry in enumerate(top.objects("shards", 1, MAX_SHARDS)))
        starts = [shard.first_row for shard in shards]
        if starts[0] != 0 or any(b <= a for a, b in pairwise(starts)):
            top.fail("shards", starts, "of rising first_row, from 0 on")
        if sum(shard.rows for shard in shards) > _ROWS:
            top.fail("shards", "more", f"of at most {_ROWS} rows together")
        return cls(
            generation=top.integer("generation", 1, 10**9 - 1),
            index_id=parse_id(top, "index_id"),
            model_id=parse_id(top, "model_id"),
            search=top.object("search").values,
            certificate=None if (certified := top.object_or_null("certificate")) is None else certified.values,
            shards=shards,
        )

    def policy(self, first: Manifest) -> tuple[SearchPolicy, Certificate | None]:
        """Defaults and certificate, checked against the manifest of a shard; raises as `parse`."""
        nlist, entry = first.nlist, Fields(self.search, SHARDS, "search.")
        search = SearchPolicy.parse(entry, version=first.version, nlist=nlist, has_dense=first.dense != "none")
        if self.certificate is None:
            return search, None
        entry = Fields(self.certificate, SHARDS, "certificate.")
        return search, Certificate.parse(entry, n=self.n, nlist=nlist, policy=search)

    def require_shard(self, number: int, manifest: Manifest, first: Manifest) -> None:
        """Require that a shard is one of this set, of the same model as the first.

        Raises
        ------
        CorruptIndex
            If it is not.
        """
        shard, name = self.shards[number], f"{name_of(number)}/{manifest.file}"
        end = self.shards[number + 1].first_row if number + 1 < len(self.shards) else manifest.next_row
        facts = {
            "n": (manifest.n, shard.rows),
            "model_id": (manifest.model_id.hex(), self.model_id.hex()),
            "the model": (_model_of(manifest), _model_of(first)),
        } | {name: (getattr(manifest, name), getattr(first, name)) for name in _SHARED}
        for what, (got, wanted) in facts.items():
            if got != wanted:
                raise CorruptIndex(f"{name}: {what} must be as in the set, {show(wanted)}, got {show(got)}")
        if manifest.version < 4 or not shard.first_row < manifest.next_row <= end:
            raise CorruptIndex(
                f"{name}: next_row must be in {shard.first_row + 1}..{end}, got {manifest.next_row}; rows are added to"
                " the last shard"
            )


def is_sharded(path: Path) -> bool:
    """Whether there is, or is meant to be, an index in shards."""
    return (path / SHARDS).exists()


def read_shards(path: Path) -> ShardSet:
    """Read the manifest of an index in shards; raises as `ShardSet.parse` and `read_small`."""
    return ShardSet.parse(read_small(path / SHARDS, _MAX_BYTES))


def read_shard(path: Path, shards: ShardSet, number: int) -> Manifest:
    """Read the manifest of a shard, of the generation that belongs to the set.

    Raises
    ------
    CorruptIndex
        If it is missing, or another one.
    """
    shard, folder = shards.shards[number], path / name_of(number)
    data = read_small(folder / shard.manifest, MANIFEST_MAX_BYTES)
    if zlib.crc32(data) != shard.crc32:
        raise CorruptIndex(
            f"{folder.name}/{shard.manifest}: crc32 must be {shard.crc32:08x} as {SHARDS} says, got"
            f" {zlib.crc32(data):08x}"
        )
    return Manifest.parse(data, shard.manifest)


def write_shards(ops: FileOps, path: Path, shards: ShardSet) -> None:
    """Make a set, whose shards are on stable storage, the one at `path`."""
    data = shards.to_bytes()
    ShardSet.parse(data)  # so that nothing is published that a reader would refuse
    replace_file(ops, path, SHARDS, data)


def shard_of(manifest: Manifest, first_row: int) -> Shard:
    """Describe a published index as a shard."""
    crc = zlib.crc32(manifest.to_bytes())
    return Shard(rows=manifest.n, first_row=first_row, manifest=manifest.file, crc32=crc)


def name_of(number: int) -> str:
    """Folder of a shard."""
    return f"shard-{number}"


def _parse_shard(entry: Fields, number: int) -> Shard:
    entry.require_keys(frozenset(Shard.__dataclass_fields__) | {"name"})
    if entry.values["name"] != name_of(number):
        entry.fail("name", entry.values["name"], repr(name_of(number)))
    manifest: Any = entry.values["manifest"]
    if not isinstance(manifest, str) or not is_manifest(manifest):
        entry.fail("manifest", manifest, "manifest-<generation>.json")
    return Shard(
        rows=entry.integer("rows", 1, _ROWS),
        first_row=entry.integer("first_row", 0, _ROWS),
        manifest=manifest,
        crc32=entry.integer("crc32", 0, 2**32 - 1),
    )


def _model_of(manifest: Manifest) -> dict[str, tuple[Any, ...]]:
    """Shapes and checksums of what is not of rows."""
    return {
        kind: (segment.dtype, segment.shape, segment.crc32)
        for kind, segment in manifest.segments.items()
        if kind not in ROW_KINDS and kind != "deleted"
    }
