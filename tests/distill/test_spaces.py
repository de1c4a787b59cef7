"""The choice of coordinates: queries that share a mean, which documents do not, call for it."""

from __future__ import annotations

import numpy as np

from tests.distill.support import Task
from vqdistill.distill.held_out import HeldOut
from vqdistill.distill.samplers import Corpus, TeacherLists
from vqdistill.distill.spaces import SHARES, choose_space
from vqdistill.types import Metric


def judge_with_mean(task: Task, length: float) -> HeldOut:
    shared = np.zeros(task.src.dim, np.float32)
    shared[0] = length
    lists = TeacherLists.from_relevance(task.queries + shared, task.relevance, 50)
    return HeldOut(Corpus(task.src.take(np.arange(task.src.n)), Metric.IP), lists)


def test_a_mean_that_all_queries_share_calls_for_sphering(tasks: dict[Metric, Task]) -> None:
    judge = judge_with_mean(tasks[Metric.IP], 20.0)
    space, misses = choose_space(judge, judge.lists.queries, 4, 0)
    assert space is not None and set(misses) == {"own", "isotropy", *(f"sphering {share}" for share in SHARES)}
    assert min(misses, key=lambda name: misses[name]).startswith("sphering") and min(misses.values()) < misses["own"]


def test_the_choice_misses_least_and_repeats_itself(tasks: dict[Metric, Task]) -> None:
    judge = judge_with_mean(tasks[Metric.IP], 0.0)
    space, misses = choose_space(judge, judge.lists.queries, 4, 0)
    again, same = choose_space(judge, judge.lists.queries, 4, 0)
    assert misses == same and (space is None) == (again is None) == (misses["own"] == min(misses.values()))


def test_few_codebooks_spend_nothing_on_what_queries_do_not_see() -> None:
    """Coordinates in which all directions are alike: codes of noise, by which every document scores about the same."""
    rng = np.random.default_rng(0)
    signal, noise = rng.standard_normal((3000, 6)), 0.05 * rng.standard_normal((3000, 58))
    x = np.concatenate([signal, noise], axis=1).astype(np.float32)
    asked = np.concatenate([rng.standard_normal((200, 6)), np.zeros((200, 58))], axis=1).astype(np.float32)
    scores = asked @ x.T
    docs = np.argsort(-scores, axis=1, kind="stable")[:, :50].astype(np.int32)
    lists = TeacherLists(asked, docs, np.take_along_axis(scores, docs, axis=1))
    misses = choose_space(HeldOut(Corpus(x, Metric.IP), lists), asked, 4, 0)[1]
    assert misses["isotropy"] > 2 * misses["own"] and min(misses, key=lambda name: misses[name]) != "isotropy"
