"""What an open index is, as clients are told."""

from __future__ import annotations

from typing import Any

from vqdistill.index.reader import IndexReader


def summarize(name: str, reader: IndexReader) -> dict[str, Any]:
    """Return the fields of `models.IndexSummary`."""
    manifest = reader.manifest
    return {
        "name": name,
        "rows": manifest.live,
        "dimensions": manifest.d,
        "metric": manifest.metric.value,
        "ids": manifest.ids,
        "generation": manifest.generation,
    }


def describe(name: str, reader: IndexReader) -> dict[str, Any]:
    """Return the fields of `models.IndexInfo`."""
    manifest, search = reader.manifest, reader.manifest.search
    certificate, drift = manifest.certificate, manifest.drift
    names = ("nprobe", "coverage", "refine", "confidence")
    return summarize(name, reader) | {
        "index_id": manifest.index_id.hex(),
        "lists": manifest.nlist,
        "code_bytes": manifest.m / 2,
        "codes": manifest.codes,
        "dense": manifest.dense,
        "resident_bytes": reader.resident_bytes,
        "disk_bytes": reader.disk_bytes,
        "deleted": manifest.deleted,
        "defaults": {option: getattr(search, option) for option in names},
        "certificate": None if certificate is None else certificate.to_json(),
        "warnings": [] if drift is None else drift.warnings,
    }
