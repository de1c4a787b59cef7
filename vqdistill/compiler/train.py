"""From a plan to what it trains: a model, what held-out queries say of it, and how it is best searched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vqdistill.compiler.adapted import adapt
from vqdistill.compiler.passes import settle
from vqdistill.compiler.recipe import Recipe
from vqdistill.compiler.supervision import FEWEST_CERTIFIED, DenseTeacher, Supervision, supervise
from vqdistill.compiler.trained import Trained
from vqdistill.distill.trainer import Distiller
from vqdistill.distill.warm import WarmStart
from vqdistill.errors import InvalidInput
from vqdistill.index.contents import learned_shape
from vqdistill.index.policy import DEFAULT_REFINE, UNCALIBRATED_SHARE, SearchPolicy
from vqdistill.model.ivfpq import IvfPqModel
from vqdistill.types import F32Rows


def train(
    recipe: Recipe, dense: DenseTeacher, warm: IvfPqModel | None = None, given: IvfPqModel | None = None
) -> Trained:
    """Train what a recipe asks for.

    Parameters
    ----------
    dense : searches the rows of the source
    warm : a model to go on from
    given : an undistilled model to begin with

    Raises
    ------
    InvalidInput
        If queries, teacher or rows are not usable, or queries are too few to prove what is wanted.
    """
    plan, asked = recipe.plan, recipe.wishes
    wanted = asked.target
    lesson = supervise(dense.src, asked.queries, asked.teacher, dense, proven=wanted is not None)
    start = None if warm is None else WarmStart(warm)
    distiller = Distiller(plan.model, recipe.config, dense.threads, dense.progress, start, given)
    model, report, held_out = _teach(distiller, lesson, asked.mix, dense)
    provable = len(lesson.reserved) > 0 and len(held_out) > 0
    if not provable:
        if wanted is not None:
            raise InvalidInput(f"recall {wanted} needs queries to tune on, got too few with documents")
        report["no_certificate"] = f"too few queries: at least {FEWEST_CERTIFIED} are needed"
    return Trained(
        plan=settle(plan, *units(model), learned_shape(model)),
        model=model,
        report=report,
        search=search_policy(model, plan.dense, distiller.calibrated),
        held_out=held_out if provable else None,
        reserved=lesson.reserved if provable else None,
        pseudo=lesson.pseudo,
        codes=distiller.codes,
    )


def search_policy(model: IvfPqModel, dense: str, calibrated: Mapping[str, Any]) -> SearchPolicy:
    """Return the defaults of a search: what was calibrated, and for the rest what suits most."""
    nprobe = max(1, round(UNCALIBRATED_SHARE * model.nlist))
    return replace(SearchPolicy(nprobe=nprobe, refine=0 if dense == "none" else DEFAULT_REFINE), **calibrated)


def units(model: IvfPqModel) -> tuple[int, int]:
    """Return the units of the adapter of queries and of that of verification; 0 where there is none."""
    query, verify = model.query_adapter, model.verify_adapter
    return 0 if query is None else query.units, 0 if verify is None else verify.units


def _teach(
    distiller: Distiller, lesson: Supervision, mix: float, dense_teacher: DenseTeacher
) -> tuple[IvfPqModel, dict[str, Any], F32Rows]:
    """Train a model, behind an adapter of the queries if these are judged.

    Returns
    -------
    The model, the report of it, and the queries that decided in training, as they come.
    """
    adapted = None if lesson.dense else adapt(lesson, dense_teacher, distiller.config, distiller.model, mix)
    asked = lesson.queries if adapted is None else adapted.asked
    lesson = lesson if adapted is None else adapted.supervision
    model = distiller.fit(
        dense_teacher.src,
        lesson.queries,
        lesson.relevance,
        dense_teacher=lesson.dense,
        teacher_temperature=lesson.temperature,
        judgments=None if adapted is None else adapted.judgments,
    )
    report = _report(distiller.report, lesson)
    if adapted is not None:
        model = replace(model, query_adapter=adapted.adapter)
        report["stages"] = adapted.stages + report.get("stages", [])
    return model, report, asked[distiller.held_out]


def _report(trained: dict[str, Any], lesson: Supervision) -> dict[str, Any]:
    report = trained | {
        "queries": lesson.origin,
        "pseudo_queries": lesson.pseudo,
        "reserved_queries": len(lesson.reserved),
        "teacher": lesson.teacher,
    }
    if lesson.pseudo:
        report["note"] = "trained and judged on pseudo-queries from the corpus: the gain on real queries is unproven"
    return report
