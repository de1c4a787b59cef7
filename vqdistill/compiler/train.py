"""From a plan to what it trains: a model, what held-out queries say of it, and how it is best searched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from vqdistill.compiler.adapted import adapt
from vqdistill.compiler.passes import settle
from vqdistill.compiler.plan import CompilePlan
from vqdistill.compiler.supervision import DenseTeacher, Supervision, supervise
from vqdistill.config import DistillConfig
from vqdistill.data.teacher import Judge
from vqdistill.distill.trainer import Distiller
from vqdistill.index.policy import DEFAULT_REFINE, UNCALIBRATED_SHARE, SearchPolicy
from vqdistill.model.ivfpq import IvfPqModel


@dataclass(frozen=True)
class Trained:
    """All that the rows are encoded and an index is published with."""

    plan: CompilePlan
    """Settled: without room for adapters that were refused."""
    model: IvfPqModel
    report: dict[str, Any]
    """JSON object: what each stage brought."""
    search: SearchPolicy
    """Calibrated defaults."""


def train(
    plan: CompilePlan, config: DistillConfig, queries: Any, teacher: str | Judge, mix: float, dense: DenseTeacher
) -> Trained:
    """Train what `plan` asks for.

    Parameters
    ----------
    queries, teacher, mix : as for `compile`
    dense : searches the rows of the source

    Raises
    ------
    InvalidInput
        If queries, teacher or rows are not usable.
    """
    lesson = supervise(dense.src, queries, teacher, dense)
    distiller = Distiller(plan.model, config, dense.threads, dense.progress)
    model, report = _teach(distiller, lesson, mix, dense)
    return Trained(settle(plan, *units(model)), model, report, search_policy(model, plan.dense, distiller.calibrated))


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
) -> tuple[IvfPqModel, dict[str, Any]]:
    """Train a model, behind an adapter of the queries if these are judged; also return the report of it."""
    adapted = None if lesson.dense else adapt(lesson, dense_teacher, distiller.config, distiller.model, mix)
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
    return model, report


def _report(trained: dict[str, Any], lesson: Supervision) -> dict[str, Any]:
    report = trained | {"queries": lesson.origin, "pseudo_queries": lesson.pseudo, "teacher": lesson.teacher}
    if lesson.pseudo:
        report["note"] = "trained and judged on pseudo-queries from the corpus: the gain on real queries is unproven"
    return report
