"""StoreOptions: how a live store compares rows, and how and when it compiles their index."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from vqdistill.config import Budget, RecallTarget
from vqdistill.documents.document import KINDS
from vqdistill.errors import InvalidInput
from vqdistill.index.manifest import Manifest
from vqdistill.types import Metric

FEWEST = 256
"""Rows below which there is nothing to compile: codebooks of 16 codewords would know the rows by heart."""


@dataclass(frozen=True, kw_only=True)
class StoreOptions:
    """Options of a store, fixed when it is made and kept in it."""

    metric: str = "cosine"
    """"ip", "cosine" or "l2"."""
    kind: str = "str"
    """Of ids: "str", as the frameworks have them, or "int64"."""
    compile_at: int | None = 10_000
    """Rows from which on there is an index; until then rows are kept as they are and compared one by one. More: a
    better first index, which takes longer to compile, and more memory and slower searches before: 15 MiB for 10,000
    rows of 384 dimensions. None: only when `LiveStore.compile` is called."""
    ram: str | None = None
    """Budget of the index, such as "32B/vec"; see `compile`."""
    recall: str | None = None
    """Target of the index, such as "0.95@10"; see `compile`."""
    dense: str = "f32"
    """Rows of the index on disk. "f32" keeps scores what they were before there was an index; "f16" takes half."""
    distill: bool = True
    """Whether codes are distilled, with pseudo-queries where `LiveStore.compile` is given none. False: compiles in a
    fraction of the time, and finds less at the same bytes."""
    seed: int = 0
    """Of every random choice of the compile."""

    def __post_init__(self) -> None:
        Metric.parse(self.metric)
        if self.kind not in KINDS:
            raise InvalidInput(f"kind of ids must be one of {', '.join(KINDS)}, got {self.kind!r}")
        at = self.compile_at
        if at is not None and (isinstance(at, bool) or not isinstance(at, int) or at < FEWEST):
            raise InvalidInput(f"compile_at must be an integer of at least {FEWEST}, or None, got {at!r}")
        if self.ram is not None:
            Budget.parse(self.ram)
        if self.recall is not None:
            RecallTarget.parse(self.recall)
        if self.dense not in ("f32", "f16", "bf16", "i8"):
            raise InvalidInput(f"dense must be one of f32, f16, bf16, i8, got {self.dense!r}")
        if not isinstance(self.distill, bool):
            raise InvalidInput(f"distill must be True or False, got {self.distill!r}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise InvalidInput(f"seed must be a non-negative integer, got {self.seed!r}")

    def agreed(self, stored: StoreOptions, path: Path) -> StoreOptions:
        """Return the options that a store has, if they are these.

        Raises
        ------
        InvalidInput
            If they differ; the message has those of the store.
        """
        mine, theirs = self.to_json(), stored.to_json()
        if differ := [name for name in mine if mine[name] != theirs[name]]:
            shown = ", ".join(f"{name}={theirs[name]!r}" for name in differ)
            raise InvalidInput(f"options of {path} must be as it has them, {shown}; leave them out to open it")
        return stored

    def to_json(self) -> dict[str, Any]:
        """Return all options by name."""
        return asdict(self)

    @classmethod
    def from_json(cls, options: Any) -> StoreOptions:
        """Read options by name.

        Raises
        ------
        InvalidInput
            If there is another name among them, or a value is not usable.
        """
        known = {field.name for field in fields(cls)}
        if not isinstance(options, dict) or not options.keys() <= known:
            raise InvalidInput(f"options of a store must be among {', '.join(sorted(known))}, got {options!r}")
        return cls(**options)


def options_of_index(options: StoreOptions | None, manifest: Manifest, index: Path) -> StoreOptions:
    """Return options with metric and kind of ids of an index to begin with.

    Raises
    ------
    InvalidInput
        If they were given, and are others.
    """
    metric, kind = manifest.metric.value, "str" if manifest.ids == "str" else "int64"
    if options is None:
        return StoreOptions(metric=metric, kind=kind)
    if (options.metric, options.kind) != (metric, kind):
        raise InvalidInput(
            f"options must have metric {metric!r} and kind {kind!r}, as {index} has, got {options.metric!r} and"
            f" {options.kind!r}"
        )
    return options
