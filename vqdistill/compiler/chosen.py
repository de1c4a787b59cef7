"""A plan by trials: sample, choice and prediction, one after another."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from vqdistill.compiler.candidates import Choices
from vqdistill.compiler.passes import plan as make_plan
from vqdistill.compiler.plan import CompilePlan
from vqdistill.compiler.planner import Choice, Planner
from vqdistill.compiler.prediction import Prediction, predict
from vqdistill.compiler.sample import Sample
from vqdistill.compiler.trials import Trials
from vqdistill.config import Budget, RecallTarget
from vqdistill.data.sources import EmbeddingSource
from vqdistill.kernels.threads import training_threads
from vqdistill.progress import Progress


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A plan, what it was chosen from, and what is expected of it."""

    plan: CompilePlan
    choice: Choice
    prediction: Prediction


def choose_by_trials(
    src: EmbeddingSource,
    queries: Any,
    choices: Choices,
    arithmetic: CompilePlan,
    target: RecallTarget,
    budget: Budget | None,
    threads: int,
    progress: Progress,
) -> Chosen:
    """Try configurations on a sample, and plan the best.

    Parameters
    ----------
    queries : as for `compile`
    arithmetic : the plan without trials, around whose lists others are tried
    budget : None = the fewest bytes
    """
    begun = time.perf_counter(), time.process_time()
    with training_threads(threads):
        with progress.stage("trials", unit="trials") as stage:
            sample = Sample.draw(src, queries, choices.seed, threads)
            trials = Trials(sample, target.k, lambda _: stage.advance())
            usual = arithmetic.model.nlist
            choice = Planner(src.facts, choices, usual, target, budget, trials).choose()
        best = choice.best
        plan = make_plan(
            src.facts,
            budget or Budget(bytes_per_vector=best.ram_bytes_per_vector),
            dense=best.dense,
            ids_kind=choices.ids,
            chosen=(best.model, f"{best.name}: {best.why} for recall {target}, of {len(choice.candidates)} candidates"),
        )
        with progress.stage("prediction", unit="trials"):
            prediction = predict(
                plan,
                choice,
                trials,
                target.recall,
                threads=threads,
                source_bytes=src.resident_bytes,
                begun=begun,
            )
    return Chosen(plan=plan, choice=choice, prediction=prediction)
