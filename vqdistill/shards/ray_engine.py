"""The steps of a job as tasks of Ray: a compile on all machines of a cluster, or all cores of this one."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ray

from vqdistill.cluster import cluster
from vqdistill.compiler.trained import Trained
from vqdistill.compiler.work import discard, left_over, require_free, require_same, work_path
from vqdistill.data.relevance import Relevance
from vqdistill.data.sources import EmbeddingSource
from vqdistill.data.teacher import ExactSearch, SearchTeacher
from vqdistill.errors import BudgetInfeasible, InvalidInput, VqdistillError, first_line
from vqdistill.index.files import FileOps
from vqdistill.index.locks import lock_writer
from vqdistill.index.remote import Destination
from vqdistill.objects.urls import absolute
from vqdistill.progress import Progress
from vqdistill.shards.exact import Question, ShardedTeacher, search_shard
from vqdistill.shards.job import Job, StoredFile, open_job
from vqdistill.shards.model import read_model
from vqdistill.shards.parts import encode_shard
from vqdistill.shards.planning import draw_job, write_plan
from vqdistill.shards.relay import Message, Relay, Replay, catch_up

RETRIES = 20
"""Of a task whose worker was lost; one that kills its worker every time ends there."""
_LOOK_S = 0.5
"""Time between two looks at what workers say."""
_ANSWER_S = 10.0
"""Within which a cluster stops a task."""


def compile_on_ray(
    input: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    address: str | None = None,
    threads: int | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Compile files of embeddings on Ray, to the bytes that `compile` writes of them.

    Parameters
    ----------
    input : file, folder or glob of files, or several of these; each file is a shard, and the unit of work. All machines
        see it, and `out`, under the same path, or at the same URL.
    out : directory to make; must not exist. What is finished waits in `<out>.work` until the index is there. Or a URL,
        as for `compile`.
    address : of a cluster, as for `ray.init`; None = one that this process has begun already, or else this machine
    threads : of this machine if a cluster is begun on it, and of training and proof; None = all cores
    resume : go on with the `<out>.work` of a driver that was lost: with its model and its finished parts
    options : as for `compile`, without a warm start and a start; queries and teacher are files

    Returns
    -------
    dict
        As `compile`, without timings.

    Raises
    ------
    InvalidInput, BudgetInfeasible
        As `compile`.
    VqdistillError
        If the disk refuses, or Ray cannot go on; `resume` may.
    """
    begin, place = time.perf_counter(), Destination(absolute(out))
    folder, inputs = work_path(place.local), [input] if isinstance(input, (str, Path)) else list(input)
    require_free(place, resume)
    if os.path.lexists(folder) and not resume:
        raise left_over(folder)
    with cluster(address, threads):
        crew = _Crew(progress or Progress())
        planned = crew.call(_plan, os.getcwd(), [str(each) for each in inputs], options | {"threads": threads})
        with _claimed(folder, planned):
            _compile(crew, folder, str(place), threads)
    manifest = place.published()
    return {
        "plan": dict(manifest.plan),
        "prediction": planned["prediction"],
        "report": dict(manifest.report),
        "search": manifest.search.to_json(),
        "certificate": None if manifest.certificate is None else manifest.certificate.to_json(),
        "timings": [],
        "seconds": time.perf_counter() - begin,
    }


def _compile(crew: _Crew, folder: Path, out: str, threads: int | None) -> None:
    """All steps behind the plan."""
    job, digest = open_job(folder)
    crew.call(_train, folder, threads)
    model = crew.start(_model, folder, digest)  # each machine gets it once, and tasks share its memory
    with crew.progress.stage("encode", job.n) as stage:
        done = [0] * len(job.shards)

        def show(number: int, message: Message) -> None:
            if message[0] == "done":
                done[number] = max(done[number], message[2])
                catch_up(stage, sum(done))

        tasks = {crew.start(_encode, folder, number, model, crew.board): number for number in range(len(job.shards))}
        for task in crew.finished(list(tasks), show):
            number = tasks[task]
            done[number] = job.shards[number].rows
            catch_up(stage, sum(done), stage.skipped + (0 if _result(task) else done[number]))
    crew.call(_commit, folder, out, threads)


class _Crew:
    """Starts tasks, waits for them, and shows what they tell on a board that all can reach."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.board: Any = ray.remote(_Board).options(num_cpus=0, max_restarts=-1).remote()

    def start(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Start a task, which is begun anew as often as its worker is lost, and return the reference of its result."""
        task: Any = ray.remote(function).options(num_cpus=1, max_retries=RETRIES)
        return task.remote(*arguments)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return the result of a task, which also takes the board."""
        replay = Replay(self.progress)
        try:
            for task in self.finished(
                [self.start(function, *arguments, self.board)], lambda _, said: replay.show(said)
            ):
                return _result(task)
        finally:
            replay.close()

    def finished(self, tasks: list[Any], show: Callable[[int, Message], None]) -> Iterator[Any]:
        """Yield the references of tasks as they end; those that are left when the caller gives up are stopped."""
        try:
            while tasks:
                ready, tasks = ray.wait(tasks, timeout=_LOOK_S)
                for sender, message in self._news():
                    show(sender, message)
                yield from ready
        finally:
            for task in tasks:
                ray.cancel(task)
            if tasks:  # so that nothing writes any more when the job is removed
                ray.wait(tasks, num_returns=len(tasks), timeout=_ANSWER_S)

    def _news(self) -> list[tuple[int, Message]]:
        try:
            news: list[tuple[int, Message]] = ray.get(self.board.take.remote(), timeout=10)
        except ray.exceptions.RayError:  # its process was lost, and is begun anew
            return []
        return news


class _Board:
    """An actor that keeps messages until the driver takes them."""

    def __init__(self) -> None:
        self._news: list[tuple[int, Message]] = []

    def post(self, sender: int, message: Message) -> None:
        """Add a message."""
        self._news.append((sender, message))

    def take(self) -> list[tuple[int, Message]]:
        """Return all messages since the last call."""
        news, self._news = self._news, []
        return news


def _relay(board: Any, sender: int = 0) -> Relay:
    return Relay(lambda message: board.post.remote(sender, message))


def _plan(place: str, inputs: Sequence[str], options: dict[str, Any], board: Any) -> dict[str, Any]:
    os.chdir(place)  # of the driver, where relative paths begin
    return draw_job(inputs, progress=_relay(board), describe=_describe, **options).to_json()


def _describe(paths: Sequence[str]) -> Iterator[StoredFile]:
    describe: Any = ray.remote(_described).options(num_cpus=1, max_retries=RETRIES)
    for task in [describe.remote(path) for path in paths]:
        yield _result(task)


def _described(path: str) -> StoredFile:
    return StoredFile.of(path)


def _train(folder: Path, threads: int | None, board: Any) -> bool:
    from vqdistill.shards.training import train_job

    return train_job(folder, threads=threads, progress=_relay(board), exact=_exact(folder))


def _model(folder: Path, digest: str) -> tuple[Trained, str]:
    return read_model(folder, digest)


def _encode(folder: Path, number: int, model: tuple[Trained, str], board: Any) -> bool:
    return encode_shard(folder, number, threads=1, model=model, progress=_relay(board, number))


def _commit(folder: Path, out: str, threads: int | None, board: Any) -> None:
    from vqdistill.shards.publishing import commit_job

    options: dict[str, Any] = {"progress": _relay(board), "exact": _exact(folder), "scratch": folder / "index"}
    commit_job(folder, out, threads=threads, **options)


def _exact(folder: Path) -> ExactSearch:
    """Exact search by tasks, a shard each, from within a task, whose place they take meanwhile."""
    job, _ = open_job(folder)

    def ask(question: Question) -> Iterator[tuple[int, Relevance]]:
        search: Any = ray.remote(_search).options(num_cpus=1, max_retries=RETRIES)
        asked = ray.put(question)
        tasks = {search.remote(folder, number, asked): number for number in range(len(job.shards))}
        left = list(tasks)
        while left:
            ready, left = ray.wait(left)
            yield tasks[ready[0]], _result(ready[0])

    def teacher(
        src: EmbeddingSource, threads: int, progress: Callable[[int], None] | None, block_rows: int | None
    ) -> SearchTeacher:
        return ShardedTeacher(ask, job, src, progress, block_rows)

    return teacher


def _search(folder: Path, number: int, question: Question) -> Relevance:
    return search_shard(open_job(folder)[0], number, question)


def _result(task: Any) -> Any:
    """Return what a task has returned, or raise what it has raised, without the stack of another process."""
    try:
        return ray.get(task)
    except ray.exceptions.RayTaskError as error:
        cause: BaseException = error.cause
        raise cause from None
    except ray.exceptions.RayError as error:
        raise VqdistillError(f"Ray has given a task up: {first_line(error)}") from None


@contextlib.contextmanager
def _claimed(folder: Path, planned: dict[str, Any]) -> Iterator[None]:
    """Be the one driver of the job in a folder, made now or by one that was lost; it is removed when it has served."""
    ops = FileOps()
    if not os.path.lexists(folder):
        write_plan(folder, Job.from_json(planned), ops)
    lock = lock_writer(folder)
    try:
        require_same(folder, _plain(open_job(folder)[0].to_json()), _plain(planned))
        for leftover in folder.glob("*.tmp-*"):  # of tasks that were lost
            ops.remove_tree(leftover)
        with _discarded_in_the_end(folder, ops):
            yield
    finally:
        os.close(lock)


@contextlib.contextmanager
def _discarded_in_the_end(folder: Path, ops: FileOps) -> Iterator[None]:
    """Remove the job after success, and where the input is to blame."""
    try:
        yield
    except (InvalidInput, BudgetInfeasible):
        discard(folder, ops)
        raise
    discard(folder, ops)


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(values))
    return found
