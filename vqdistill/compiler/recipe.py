"""What a compile will do: plan, settings of training and sizes, decided from options before anything is trained."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqdistill.compiler.decide import Wishes, decide
from vqdistill.compiler.memory import (
    LARGEST,
    Sizes,
    collect_garbage,
    give_back_freed_memory,
    parse_cap,
    require_room_to_prove,
    sizes_within,
)
from vqdistill.compiler.plan import CompilePlan
from vqdistill.compiler.proof import Proof
from vqdistill.compiler.supervision import DenseTeacher, teacher_kind
from vqdistill.compiler.trained import Trained
from vqdistill.config import DistillConfig
from vqdistill.data.sources import EmbeddingSource
from vqdistill.data.teacher import ExactSearch, ExactTeacher, Judge
from vqdistill.errors import InvalidInput
from vqdistill.progress import Progress

if TYPE_CHECKING:
    from vqdistill.compiler.prediction import Prediction


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that training and encoding depend on, besides the rows and a model to begin with."""

    wishes: Wishes
    config: DistillConfig
    plan: CompilePlan
    sizes: Sizes
    capped: bool
    """Whether `sizes` keep to a cap on memory."""
    prediction: dict[str, Any] | None
    """What trials expect of the index, JSON-ready; None without trials."""

    def keep_to_cap(self) -> None:
        """Let this process, which goes by the recipe, hold no memory that it has freed, if there is a cap."""
        if self.capped:
            give_back_freed_memory()

    def to_json(self) -> dict[str, Any]:
        """Return as JSON values what the bytes of an index depend on, but for files."""
        return {
            "config": asdict(self.config),
            "plan": self.plan.to_json(),
            "mix": self.wishes.mix,
            "sizes": asdict(self.sizes),
        }

    def dense_teacher(
        self, src: EmbeddingSource, cache: Path, progress: Progress, exact: ExactSearch = ExactTeacher
    ) -> DenseTeacher:
        """Return what searches the rows of `src`; finished lists are kept in the folder `cache`."""
        wishes = self.wishes
        return DenseTeacher(src, cache, wishes.seed, wishes.cores, progress, self.sizes, exact)

    def reported(self, done: Trained) -> Trained:
        """Return what was trained with what had been expected of it in its report."""
        return done if self.prediction is None else replace(done, report=done.report | {"prediction": self.prediction})

    def proof(self, done: Trained, dense: DenseTeacher) -> Proof | None:
        """Return what proves the index; None where queries are too few."""
        if done.held_out is None or done.reserved is None:
            return None
        io = "pread" if self.capped else "auto"  # what a map has touched counts as resident
        return Proof(done.held_out, done.reserved, done.pseudo, dense, self.wishes.target, io)


def asked_for(
    *,
    distill: bool = True,
    teacher: str | Judge = "exact",
    mix: float = 0.0,
    seed: int = 0,
    loss: str = "listnet",
    sampler: str = "topk",
    debias: bool = False,
    false_negatives: float | None = None,
    **wishes: Any,
) -> tuple[Wishes, DistillConfig]:
    """Sort out options of `compile`; others than these are fields of `Wishes`.

    Raises
    ------
    InvalidInput
        If one is not usable, or the teacher has no use for it.
    """
    config = DistillConfig(
        seed=seed, enabled=distill, loss=loss, sampler=sampler, debias=debias, false_negatives=false_negatives
    )
    kind = teacher_kind(teacher, mix)
    if false_negatives is not None and (kind == "exact" or mix < 1):
        raise InvalidInput("false_negatives needs scores, labels or a function as teacher, and mix 1 of it")
    return Wishes(distill=distill, teacher=teacher, mix=mix, seed=seed, **wishes), config


def draw_up(
    src: EmbeddingSource,
    wishes: Wishes,
    config: DistillConfig,
    build_ram: str | int | None = None,
    progress: Progress | None = None,
) -> tuple[Recipe, Prediction | None]:
    """Decide how to compile `src`.

    Parameters
    ----------
    wishes : what is asked for
    config : of training
    build_ram : cap on the memory of a process, as for `compile`

    Returns
    -------
    The recipe, and what trials predict; None without them.

    Raises
    ------
    InvalidInput
        If an option is not usable.
    BudgetInfeasible
        If nothing fits the budget or `build_ram`.
    """
    progress = progress or Progress()
    decision = decide(src, wishes, progress)
    progress.note(decision.explain())
    plan, prediction = decision.plan, decision.prediction
    del decision  # and with it the sample and what trials have trained
    collect_garbage()
    sizes = LARGEST
    if build_ram is not None:
        sizes = _capped(build_ram, plan, src, wishes.cores, progress)
        config = replace(config, train_bytes=sizes.train_bytes, codebook_rows=sizes.codebook_rows)
    recipe = Recipe(
        wishes=wishes,
        config=config,
        plan=plan,
        sizes=sizes,
        capped=build_ram is not None,
        prediction=None if prediction is None else prediction.lasting(),
    )
    recipe.keep_to_cap()
    return recipe, prediction


def _capped(build_ram: str | int, plan: CompilePlan, src: EmbeddingSource, threads: int, progress: Progress) -> Sizes:
    """What a compile may hold at a time, so that all of it stays within a cap."""
    cap = parse_cap(build_ram)
    sizes = sizes_within(cap, plan, threads=threads, source_bytes=src.resident_bytes)
    require_room_to_prove(sizes, cap, plan, threads=threads, source_bytes=src.resident_bytes)
    progress.note(f"build-ram    {sizes.explain(cap)}")
    return sizes
