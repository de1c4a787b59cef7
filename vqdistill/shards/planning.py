"""First step of a job: look at every input file once, and decide what they become."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from vqdistill.compiler.decide import Wishes
from vqdistill.compiler.recipe import asked_for, draw_up
from vqdistill.data.files import files_in, files_of, is_one_file, resolve
from vqdistill.data.sources import has_column, open_queries, open_source
from vqdistill.errors import InvalidInput
from vqdistill.index.files import FileOps, require_to_make
from vqdistill.objects.store import AnyPath, RemotePath
from vqdistill.objects.urls import absolute, is_url
from vqdistill.progress import Progress
from vqdistill.shards.job import PLAN, IdsOfRows, InputShard, Job, StoredFile
from vqdistill.shards.sealed import seal

Describe = Callable[[Sequence[str]], Iterable[StoredFile]]


def plan_job(
    inputs: Sequence[str | Path],
    folder: str | Path,
    *,
    ids: str | None = None,
    metric: str | None = None,
    build_ram: str | int | None = None,
    progress: Progress | None = None,
    ops: FileOps | None = None,
    **options: Any,
) -> Job:
    """Write the plan of a job into a new folder.

    Parameters
    ----------
    inputs : files, `FILE:key`, folders or globs of files; each file is a shard, in the order given
    folder : to make; must not exist
    ids : external ids: a column of every shard, or a file of all, in the order of the shards
    metric : as for `open_source`
    build_ram : hard cap on the memory of a process, as for `compile`
    ops : file operations; replaced in tests
    options : how the index is to be and its model trained, as for `compile`, without a warm start and a start; queries
        and teacher are files

    Raises
    ------
    InvalidInput
        If an input or option is not usable, inputs disagree or are given twice, or `folder` exists.
    BudgetInfeasible
        If nothing fits the budget, or reaches the wanted recall within it.
    VqdistillError
        If the disk refuses; nothing is left behind.
    """
    if is_url(folder):
        raise InvalidInput(f"job must be a folder that all machines see, got {folder}")
    folder = Path(folder)
    require_to_make(folder, "job")
    job = draw_job(inputs, ids=ids, metric=metric, build_ram=build_ram, progress=progress, **options)
    write_plan(folder, job, ops or FileOps())
    return job


def write_plan(folder: Path, job: Job, ops: FileOps) -> None:
    """Make the folder of a job; raises as `plan_job`."""

    def taken() -> bool:
        raise InvalidInput(f"job {folder} must not exist, but it does")

    seal(ops, folder, PLAN, lambda _: job.to_json(), taken)


def draw_job(
    inputs: Sequence[str | Path],
    *,
    ids: str | None = None,
    metric: str | None = None,
    build_ram: str | int | None = None,
    progress: Progress | None = None,
    describe: Describe = lambda paths: map(StoredFile.of, paths),
    **options: Any,
) -> Job:
    """Make the plan of a job and write nothing; parameters and errors as for `plan_job`.

    Parameters
    ----------
    describe : reads all bytes of the files of rows, in place of this process
    """
    progress = progress or Progress()
    wishes, config = asked_for(**options)
    named = _distinct([file for each in inputs for file in files_of(str(each))])
    names = [path if key is None else f"{path}:{key}" for path, key in named]
    column = _ids_of(names, ids)
    rows = _rows_of(names, metric, column)
    src = open_source(names, metric=metric, ids=None if column is None else column.name)
    asked = _with_paths(wishes)
    if asked.queries not in (None, "none"):
        open_queries(asked.queries, src)
    recipe, _ = draw_up(src, asked, config, build_ram, progress)
    return Job(
        shards=_shards(named, rows, describe, progress),
        files=_other_files(asked, column),
        ids=column,
        fingerprint=src.fingerprint(),
        recipe=recipe,
    )


def summary(job: Job) -> dict[str, Any]:
    """Return for people what a plan says of its input."""
    facts = asdict(job.recipe.plan.facts) | {"metric": job.recipe.plan.metric.value}
    return {"shards": len(job.shards), "rows": job.n, "bytes": sum(each.file.bytes for each in job.shards)} | facts


def _distinct(files: Sequence[tuple[AnyPath, str | None]]) -> list[tuple[str, str | None]]:
    """Absolute names and keys; the same rows must not come twice, under whatever name."""
    seen: dict[tuple[Any, str | None], AnyPath] = {}
    for path, key in files:
        before = seen.setdefault((_identity(path), key), path)
        if before is not path:
            raise InvalidInput(f"shards must be different files, got {path} and {before}, which are the same")
    return [(absolute(str(path)), key) for path, key in files]


def _identity(path: AnyPath) -> str | tuple[int, int]:
    if isinstance(path, RemotePath):
        return path.url
    stat = os.stat(path)
    return stat.st_dev, stat.st_ino


def _ids_of(names: Sequence[str], ids: str | None) -> IdsOfRows | None:
    if ids is None:
        return None
    held = [has_column(name, ids) for name in names]
    if all(held):
        return IdsOfRows(name=ids, sidecar=False)
    if any(held):
        without = names[held.index(False)]
        raise InvalidInput(f"ids {ids} must be in every shard, but {without} has none")
    return IdsOfRows(name=absolute(ids), sidecar=True)


def _rows_of(names: Sequence[str], metric: str | None, ids: IdsOfRows | None) -> list[int]:
    """Rows of each shard, whose ids are all of one kind."""
    rows: list[int] = []
    kinds: list[str] = []
    for name in names:
        src = open_source(name, metric=metric, ids=None if ids is None or ids.sidecar else ids.name)
        rows.append(src.n)
        kinds.append("rows" if src.ids is None else src.ids.kind)
        if kinds[-1] != kinds[0]:
            raise InvalidInput(f"ids of {name} must be {kinds[0]}, as those of {names[0]}, got {kinds[-1]}")
    return rows


def _shards(
    named: Sequence[tuple[str, str | None]], rows: Sequence[int], describe: Describe, progress: Progress
) -> tuple[InputShard, ...]:
    starts, shards = [0, *accumulate(rows)], []
    with progress.stage("checksums", len(named), "files") as stage:
        files = describe([path for path, _ in named])
        for file, (_, key), start, count in zip(files, named, starts, rows, strict=False):
            shards.append(InputShard(file=file, key=key, start=start, rows=count))
            stage.advance()
    return tuple(shards)


def _with_paths(wishes: Wishes) -> Wishes:
    """The same with absolute paths, as later steps may run elsewhere."""
    queries, teacher = wishes.queries, wishes.teacher
    if callable(teacher) or not (queries is None or isinstance(queries, (str, Path))):
        raise InvalidInput("queries and teacher of a job must be files, got an array or a function")
    if queries not in (None, "none"):
        queries = absolute(queries)
    kind, colon, path = str(teacher).partition(":")
    return replace(wishes, queries=queries, teacher=kind + colon + (absolute(path) if path else ""))


def _other_files(wishes: Wishes, ids: IdsOfRows | None) -> tuple[StoredFile, ...]:
    names = [] if wishes.queries in (None, "none") else [wishes.queries]
    names += [str(wishes.teacher).partition(":")[2]] + ([ids.name] if ids is not None and ids.sidecar else [])
    paths = [path for name in names if name for path in resolve(name)[0]]
    inside = [path for each in paths for path in files_in(each)]
    return tuple(StoredFile.of(str(path)) for path in inside if is_one_file(path))
