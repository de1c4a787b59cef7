"""The plan of a job as its folder keeps it: input shards, and everything that their index depends on."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from vqdistill.compiler.decide import Wishes
from vqdistill.compiler.memory import Sizes
from vqdistill.compiler.plan import CompilePlan
from vqdistill.compiler.recipe import Recipe
from vqdistill.config import DistillConfig
from vqdistill.data.files import resolve
from vqdistill.data.lance import SUFFIX, stamp
from vqdistill.data.sources import TableSource, open_shard, open_source
from vqdistill.errors import InvalidInput, VqdistillError
from vqdistill.objects.store import find_one
from vqdistill.objects.urls import absolute, is_url
from vqdistill.shards.sealed import digest_of_file, read_record

PROTOCOL = 1
"""Version of the folder; another one is refused."""
PLAN = "plan.json"


@dataclass(frozen=True)
class StoredFile:
    """A file that a job reads."""

    path: str
    bytes: int
    digest: str
    """See `digest_of_file`; of an object its entity tag if it has one, of a dataset its version: no byte is read."""

    @classmethod
    def of(cls, path: str | Path) -> StoredFile:
        """Describe a file as it is now."""
        name = absolute(path)
        if name.lower().endswith(SUFFIX):
            (found,) = resolve(name)[0]
            return cls(name, *stamp(found))
        if not is_url(name):
            return cls(name, os.stat(name).st_size, digest_of_file(name))
        file = find_one(name)
        return cls(name, file.size, file.mark if file.tagged else digest_of_file(file))

    def is_same(self) -> bool:
        """Whether the content is what it was."""
        now = StoredFile.of(self.path)
        return (now.bytes, now.digest) == (self.bytes, self.digest)

    def require_same(self) -> None:
        """Refuse a file that is no longer what it was.

        Raises
        ------
        InvalidInput
            If it is missing or has another content.
        """
        try:
            same = self.is_same()
        except OSError as error:
            raise InvalidInput(f"{self.path} of the plan cannot be read: {error.strerror}") from None
        if not same:
            raise InvalidInput(
                f"{self.path} has changed since the plan: it must have {self.bytes} B of digest {self.digest}, got"
                " others; plan anew, or restore it"
            )


@dataclass(frozen=True, kw_only=True)
class InputShard:
    """One file of rows."""

    file: StoredFile
    key: str | None
    """Array or column of the rows in it."""
    start: int
    """Number of its first row in the whole input."""
    rows: int

    @property
    def name(self) -> str:
        """Path, with `:key` where there is one."""
        return self.file.path if self.key is None else f"{self.file.path}:{self.key}"


@dataclass(frozen=True, kw_only=True)
class IdsOfRows:
    """Where external ids are."""

    name: str
    """Column of every shard, or path of a file with all ids, with `:key` where it needs one."""
    sidecar: bool
    """Whether it is the latter."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A plan; `Job.open` reads that of a folder."""

    shards: tuple[InputShard, ...]
    files: tuple[StoredFile, ...]
    """Queries, labels, scores and ids that lie in files of their own."""
    ids: IdsOfRows | None
    fingerprint: str
    """Of the whole input, see `EmbeddingSource.fingerprint`."""
    recipe: Recipe

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON values, but for its digest."""
        asked = self.recipe.wishes
        return {
            "protocol": PROTOCOL,
            "shards": [
                asdict(shard.file) | {"key": shard.key, "start": shard.start, "rows": shard.rows}
                for shard in self.shards
            ],
            "files": [asdict(file) for file in self.files],
            "ids": None if self.ids is None else asdict(self.ids),
            "fingerprint": self.fingerprint,
            "queries": asked.queries,
            "teacher": asked.teacher,
            "recall": None if asked.target is None else str(asked.target),
            "seed": asked.seed,
            "capped": self.recipe.capped,
            "prediction": self.recipe.prediction,
        } | self.recipe.to_json()

    @classmethod
    def from_json(cls, value: dict[str, Any], threads: int | None = None) -> Job:
        """Read what `to_json` gave, and check it.

        Parameters
        ----------
        threads : to use here; None = all cores

        Raises
        ------
        InvalidInput
            If it is anything else.
        """
        if value.get("protocol") != PROTOCOL:
            raise InvalidInput(f"protocol must be {PROTOCOL}, got {value.get('protocol')!r}: plan anew")
        config = value["config"]
        job = cls(
            shards=tuple(_shard(each) for each in value["shards"]),
            files=tuple(StoredFile(**each) for each in value["files"]),
            ids=None if value["ids"] is None else IdsOfRows(**value["ids"]),
            fingerprint=value["fingerprint"],
            recipe=Recipe(
                wishes=Wishes(
                    queries=value["queries"],
                    teacher=value["teacher"],
                    mix=value["mix"],
                    recall=value["recall"],
                    seed=value["seed"],
                    threads=threads,
                ),
                config=DistillConfig(**config | {"skip": tuple(config["skip"])}),
                plan=CompilePlan.from_json(value["plan"]),
                sizes=Sizes(**value["sizes"]),
                capped=value["capped"],
                prediction=value["prediction"],
            ),
        )
        job._check()
        return job

    def _check(self) -> None:
        starts = [shard.start for shard in self.shards] + [self.recipe.plan.facts.n]
        if starts[0] != 0 or any(
            b - a != shard.rows for (a, b), shard in zip(pairwise(starts), self.shards, strict=True)
        ):
            raise InvalidInput("shards must follow one another from row 0 to the last one of the plan")
        asked = self.recipe.wishes
        texts = (self.fingerprint, asked.teacher, *((asked.queries,) if asked.queries is not None else ()))
        if not all(isinstance(text, str) for text in texts) or not isinstance(self.recipe.capped, bool):
            raise InvalidInput(f"fingerprint, teacher and queries must be text, got {texts}")
        if not all(type(size) is int and size > 0 for size in asdict(self.recipe.sizes).values()):
            raise InvalidInput(f"sizes must be positive integers, got {self.recipe.sizes}")

    @property
    def n(self) -> int:
        """Rows of all shards."""
        return self.recipe.plan.facts.n

    def shard(self, number: int) -> InputShard:
        """Return a shard by its number.

        Raises
        ------
        InvalidInput
            If there is none.
        """
        if not 0 <= number < len(self.shards):
            raise InvalidInput(f"shard must be in 0..{len(self.shards) - 1}, got {number}")
        return self.shards[number]

    def open_source(self) -> TableSource:
        """Open all shards as one source.

        Raises
        ------
        InvalidInput
            If they cannot be read, or a sample of their rows is not that of the plan.
        """
        names = [shard.name for shard in self.shards]
        metric = self.recipe.plan.metric
        src = open_source(names, metric=metric, ids=None if self.ids is None else self.ids.name)
        if src.facts != self.recipe.plan.facts or src.fingerprint() != self.fingerprint:
            for shard in self.shards:
                shard.file.require_same()
            raise InvalidInput(f"the rows of {src.name} must be those of the plan, got others")
        return src

    def open_shard(self, shard: InputShard) -> TableSource:
        """Open the rows of one shard; raises as `open_source`, with all of its file compared."""
        shard.file.require_same()
        ids = self.ids
        src = open_shard(
            shard.name,
            shard.start,
            metric=self.recipe.plan.metric,
            ids=None if ids is None else ids.name,
            sidecar=ids is not None and ids.sidecar,
        )
        if (src.n, src.dim) != (shard.rows, self.recipe.plan.facts.dim):
            raise InvalidInput(f"{shard.name} must have the rows of the plan, got {src.n} x {src.dim}")
        return src


def open_job(folder: str | Path, threads: int | None = None) -> tuple[Job, str]:
    """Read the plan of a folder.

    Returns
    -------
    The plan, and its digest, by which all that belongs to it is known.

    Raises
    ------
    InvalidInput
        If there is none, or it is damaged.
    """
    try:
        record, digest = read_record(Path(folder), PLAN)
    except FileNotFoundError:
        raise InvalidInput(f"{folder} must be a folder made by `vqdistill shard plan`, got no {PLAN} in it") from None
    try:
        return Job.from_json(record, threads), digest
    except (KeyError, TypeError, AttributeError, IndexError, VqdistillError) as error:
        raise InvalidInput(f"{Path(folder) / PLAN} is no plan that can be used: {error}") from None


def job_cache(folder: str | Path) -> Path:
    """Return where finished lists of the dense teacher are kept."""
    return Path(folder) / "cache"


def require_unchanged(files: Iterable[StoredFile]) -> None:
    """Refuse files that are no longer what they were; raises as `StoredFile.require_same`."""
    for file in files:
        file.require_same()


def _shard(value: dict[str, Any]) -> InputShard:
    file = StoredFile(value["path"], value["bytes"], value["digest"])
    return InputShard(file=file, key=value["key"], start=value["start"], rows=value["rows"])
