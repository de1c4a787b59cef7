"""Export an index to a target, and say what became of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqdistill.errors import InvalidInput, needed_by
from vqdistill.index.files import require_one_piece
from vqdistill.index.opening import open_index
from vqdistill.index.reader import IndexReader
from vqdistill.interchange.arrays import write_npz, write_safetensors

Report = dict[str, Any]


@dataclass(frozen=True)
class ExportOptions:
    """Options of all targets; None = the default of the target. One that a target does not have is refused."""

    layout: str | None = None
    """faiss: "file" (the default), "pyserini", "langchain" or "haystack", see docs/EXPORT.md."""
    refine: bool | None = None
    """faiss: whether dense vectors go along and verify candidates. Default: if the index has them."""
    fast_scan: bool | None = None
    """faiss: whether codes are laid out for SIMD look-ups. Default: yes, unless nbits is 8."""
    nbits: int | None = None
    """faiss: 4, or 8 for product codes of pairs of subspaces. Default: 4."""
    numbered: bool | None = None
    """faiss: whether rows are numbered from 0 on in place of their ids. Default: no."""
    adapters: bool | None = None
    """faiss: whether adapters of queries go along. Default: yes."""
    documents: str | Path | None = None
    """faiss, layouts langchain and haystack: JSON lines, or a document store, with the texts of rows."""
    rows: bool | None = None
    """numpy, safetensors: whether codes, lists and ids of rows go along. Default: yes."""

    @property
    def given(self) -> dict[str, Any]:
        """Those that are not None."""
        return {name: value for name, value in vars(self).items() if value is not None}


def export_index(index: str | Path, out: str | Path, *, to: str, **options: Any) -> Report:
    """Write the learned parts and rows of an index in the form of another engine.

    Parameters
    ----------
    index : directory of an index
    out : file or directory to make; must not exist
    to : one of TARGETS
    options : fields of `ExportOptions`

    Returns
    -------
    dict
        `target`, `out`, `rows`, `bytes` on disk; and for faiss `agreement`: the share of our results of some queries
        that the written file gives in faiss, see `interchange.agreement`.

    Raises
    ------
    InvalidInput
        If a target or option is unknown or does not fit, the target cannot express something, or `out` exists.
    MissingDependency
        If the library of the target is not installed.
    CorruptIndex, VqdistillError
        If the index cannot be read, or the disk refuses; nothing is left behind.
    """
    if to not in TARGETS:
        raise InvalidInput(f"target must be one of {', '.join(TARGETS)}, got {to!r}")
    unknown = options.keys() - ExportOptions.__dataclass_fields__.keys()
    if unknown:
        raise InvalidInput(
            f"options of an export are {', '.join(ExportOptions.__dataclass_fields__)}, got {min(unknown)}"
        )
    target, given = TARGETS[to], ExportOptions(**options).given
    strangers = given.keys() - target.options
    if strangers:
        raise InvalidInput(
            f"options of the target {to} are {', '.join(sorted(target.options)) or 'none'}, got"
            f" {', '.join(sorted(strangers))}"
        )
    require_one_piece(Path(index))
    with open_index(index) as reader:
        more = target.write(reader, Path(out), given)
        rows = reader.manifest.live
    return {"target": to, "out": str(out), "rows": rows, "bytes": _size(Path(out))} | more


def _to_faiss(reader: IndexReader, out: Path, given: dict[str, Any]) -> Report:
    # Here, because faiss is optional.
    with needed_by("the target faiss", "faiss", extra="faiss"):
        from vqdistill.interchange import agreement, faiss_files
        from vqdistill.interchange.faiss_index import FaissOptions
    layout, documents = given.pop("layout", "file"), given.pop("documents", None)
    given.setdefault("refine", reader.manifest.dense != "none")
    given.setdefault("fast_scan", given.get("nbits", 4) == 4)
    options = FaissOptions(**given)
    path = faiss_files.write_faiss(reader, out, options, layout, None if documents is None else Path(documents))
    numbered = options.numbered or layout != "file"
    share = agreement.agreement(reader, path, numbered=numbered, refine=options.refine)
    return {"layout": layout, "agreement": share}


def _to_lance(reader: IndexReader, out: Path, given: dict[str, Any]) -> Report:
    with needed_by("the target lance", "pylance", extra="lance"):
        from vqdistill.interchange.lance_dataset import write_lance
    write_lance(reader, out)
    return {}


def _to_scann(reader: IndexReader, out: Path, given: dict[str, Any]) -> Report:
    with needed_by("the target scann", "scann-core", extra="scann"):
        from vqdistill.interchange.scann_assets import write_scann
    write_scann(reader, out)
    return {}


def _arrays(write: Callable[..., None]) -> Callable[[IndexReader, Path, dict[str, Any]], Report]:
    def write_given(reader: IndexReader, out: Path, given: dict[str, Any]) -> Report:
        write(reader, out, **given)
        return {}

    return write_given


def _size(out: Path) -> int:
    return sum(path.stat().st_size for path in ([out] if out.is_file() else out.rglob("*")) if path.is_file())


@dataclass(frozen=True)
class Target:
    """An engine or form that indexes are exported to."""

    write: Callable[[IndexReader, Path, dict[str, Any]], Report]
    options: frozenset[str]
    """Fields of ExportOptions."""


TARGETS = {
    "faiss": Target(
        _to_faiss,
        frozenset({"layout", "refine", "fast_scan", "nbits", "numbered", "adapters", "documents"}),
    ),
    "lance": Target(_to_lance, frozenset()),
    "scann": Target(_to_scann, frozenset()),
    "numpy": Target(_arrays(write_npz), frozenset({"rows"})),
    "safetensors": Target(_arrays(write_safetensors), frozenset({"rows"})),
}
"""By name."""
