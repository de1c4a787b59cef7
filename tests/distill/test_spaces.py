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
    space, errors = choose_space(judge, judge.lists.queries, 4, 0)
    assert space is not None and set(errors) == {"own", "isotropy", *(f"sphering {share}" for share in SHARES)}
    assert min(errors, key=lambda name: errors[name]).startswith("sphering") and min(errors.values()) < errors["own"]


def test_the_choice_is_the_least_error_and_repeats_itself(tasks: dict[Metric, Task]) -> None:
    judge = judge_with_mean(tasks[Metric.IP], 0.0)
    space, errors = choose_space(judge, judge.lists.queries, 4, 0)
    again, same = choose_space(judge, judge.lists.queries, 4, 0)
    assert errors == same and (space is None) == (again is None) == (errors["own"] == min(errors.values()))
