"""Distiller: from rows, queries and relevance to a model that is never worse than its undistilled start."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from vqdistill.config import DistillConfig, IvfPqConfig
from vqdistill.data.relevance import Relevance
from vqdistill.data.sources import EmbeddingSource
from vqdistill.distill.adapter import candidate_quality, hard_temperature, learn_adapter
from vqdistill.distill.calibration import calibrate_search
from vqdistill.distill.descent import Descent
from vqdistill.distill.held_out import FEWEST_QUERIES, HeldOut, split, surely_better
from vqdistill.distill.judged import HardSampler, JudgedQueries, Judgments, renumber
from vqdistill.distill.lesson import Lesson, training_rows
from vqdistill.distill.losses import COMPARING
from vqdistill.distill.routing import calibrate_lift, choose_lists, learn_router
from vqdistill.distill.samplers import Corpus, TeacherLists
from vqdistill.distill.spaces import SHARES, choose_space
from vqdistill.distill.terms import QueryTerms
from vqdistill.distill.warm import ROUNDS, ROWS, WarmStart
from vqdistill.errors import InvalidInput
from vqdistill.kernels.threads import one_library_thread
from vqdistill.model.additive import RowTerms
from vqdistill.model.codebooks import (
    Coarse,
    corpus_mean,
    refit_rows,
    serve_rows,
    train_additive_start,
    train_coarse,
    train_start,
)
from vqdistill.model.ivfpq import IvfPqModel
from vqdistill.model.kmeans import nearest
from vqdistill.model.learned import LearnQueries
from vqdistill.model.space import Space
from vqdistill.progress import Progress
from vqdistill.types import F64, Codes, F32Rows, Metric, as_f32_rows

MOST_LEARNED = 50_000
"""Learn queries that are kept for rows to come: 40 MB on disk at 384 dimensions."""
_ROWS_READ = 4096

_log = logging.getLogger(__name__)


@dataclass
class Distiller:
    """Trains a model of the given shape.

    Parameters
    ----------
    model : shape, e.g. `plan(...).model`
    config : training options
    threads : threads of the held-out searches; results do not depend on it
    progress : told of every stage
    warm : a model to go on from; None = from nothing
    given : an undistilled model of product codes that takes the place of one trained here; None = train it

    Attributes
    ----------
    report : dict
        After `fit`: what each stage brought on the held-out queries, JSON-ready. `report["routing"]`, after
        distillation, is the rule that chooses lists for each query: `temperature` and `ladder` of
        `routing.calibrate_lift`.
    calibrated : dict
        After `fit`: how the model is best searched, by the fields of `index.policy.SearchPolicy`; empty without
        held-out queries.
    held_out : (h,) int64
        After `fit`: numbers of the queries that decided and did not train.
    codes : Codes or None
        After `fit`: those of all rows of the source, as the model gives them; None if training saw only some rows.
    """

    model: IvfPqConfig
    config: DistillConfig = field(default_factory=DistillConfig)
    threads: int = 1
    progress: Progress = field(default_factory=Progress)
    warm: WarmStart | None = None
    given: IvfPqModel | None = None
    report: dict[str, Any] = field(default_factory=dict, init=False)
    calibrated: dict[str, Any] = field(default_factory=dict, init=False)
    held_out: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64), init=False)
    codes: Codes | None = field(default=None, init=False)

    @one_library_thread()
    def fit(
        self,
        src: EmbeddingSource,
        queries: Any,
        relevance: Relevance,
        *,
        dense_teacher: bool = True,
        teacher_temperature: float | None = None,
        judgments: Judgments | None = None,
    ) -> IvfPqModel:
        """Train the undistilled start, then distil the teacher's relevance into codes, look-up tables and routing.

        Parameters
        ----------
        src : the corpus; of a large one, rows around the teacher's lists and random ones are used
        queries : (q, d) learn queries, prepared (unit rows under cosine)
        relevance : what the teacher ranks for them, row numbers of `src`
        dense_teacher : whether its scores are those of the dense vectors; if not (pair scores, labels), only listed
            documents have target mass
        teacher_temperature : that its scores are meant to be divided by; None = calibrated to `config.list_length`
        judgments : what labels or pair scores say of the same queries, for a verification adapter of
            `model.verify_units`; they also say which queries to hold out

        Returns
        -------
        IvfPqModel
            The best of all stages on held-out queries; the start if nothing is better.

        Raises
        ------
        InvalidInput
            If queries and relevance do not belong together or to `src`, the metric has no such codes, the loss has
            nothing to compare, or false negatives are to be left out with a dense teacher.
        """
        queries = as_f32_rows(queries, "queries", src.dim) if len(queries) else np.empty((0, src.dim), np.float32)
        self._check(src, queries, relevance, dense_teacher)
        if self.warm is not None:
            self.warm.require_match(self.model, src.metric, src.dim)
            self.config = self.warm.shorter(self.config)
        rng = np.random.default_rng([self.config.seed, 0])
        rows = training_rows(src.n, relevance, max(1, self.config.train_bytes // (4 * src.dim)), rng)
        corpus = self._corpus(src, rows)
        local = renumber(relevance, rows)
        train, held = split(local, self.config.held_out, rng) if judgments is None else judgments.split(local)
        self.held_out = held
        self.report = {"rows": len(rows), "train_queries": len(train), "held_out_queries": len(held)}
        space = self._space(corpus, queries, local, train, held)
        moved = queries
        if space is not None:
            # In place, here and on the way back: the rows are most of what training holds in memory.
            space.docs(corpus.x, out=corpus.x)
            moved = space.queries(queries)
        lists = [self._lists(moved, local, part) for part in (train, held)]
        judge = HeldOut(corpus, lists[1], self.threads)
        terms = None
        if self.config.enabled and judge.usable:
            terms = QueryTerms.from_relevance(moved[train], relevance.select(train))
        coarse = self._coarse(corpus, None if terms is None else terms.take(rows), judge)
        lesson = Lesson(corpus, coarse, lists[0], judge, dense_teacher, teacher_temperature)
        model, codes = self._train(lesson, terms, rows, rng)
        model, lesson = model.in_rows_space(space), lesson.in_rows_space(space)
        if dense_teacher:
            model = replace(model, learned=_learned(model, queries, relevance, train))
        if terms is not None and judgments is not None and self.model.verify_units:
            model = self._verify(model, codes, lesson, judgments.local(queries, rows))
        self._finish(model, codes, lesson.judge)
        self.codes = codes if len(rows) == src.n else None
        return model

    def _check(self, src: EmbeddingSource, queries: F32Rows, relevance: Relevance, dense_teacher: bool) -> None:
        """Refuse what `fit` says that it refuses."""
        if relevance.n_queries != len(queries):
            raise InvalidInput(f"relevance must cover {len(queries)} queries, got {relevance.n_queries}")
        relevance.require_docs_below(src.n)
        if src.metric is Metric.L2 and (self.model.residual or self.model.codes == "additive"):
            raise InvalidInput("metric l2 needs plain product codes, got residual or additive ones")
        if self.config.loss in COMPARING and not dense_teacher and relevance.nnz and relevance.counts.max() < 2:
            raise InvalidInput(
                f"loss {self.config.loss} needs a teacher that scores 2 documents of a query, got 1 a query"
            )
        if self.config.false_negatives is not None and dense_teacher:
            raise InvalidInput("false_negatives needs a teacher of scores or labels: a dense one knows all scores")

    def _train(
        self, lesson: Lesson, terms: QueryTerms | None, rows: npt.NDArray[np.int64], rng: np.random.Generator
    ) -> tuple[IvfPqModel, Codes]:
        """Train the start and, with terms of queries, distil it stage by stage."""
        served = None if "codes" in self.config.skip else terms
        model, codes = self._start(lesson) if self.warm is None else self._go_on(lesson, self.warm, served, rows)
        if terms is None:
            if self.config.enabled:
                self.report["skipped"] = f"distillation needs at least {FEWEST_QUERIES} queries with documents"
            return model, codes
        if model.anchors is not None:
            model = replace(model, list_terms=terms)
        if model.additive and served is not None and model.terms is None:
            model, codes = self._serve_queries(model, codes, served, rows, lesson)
        if "tables" not in self.config.skip:
            model, codes = self._distil(model, codes, lesson, rng)
        if "router" not in self.config.skip:
            model = self._route(model, lesson, rng)
        return model, codes

    def _finish(self, model: IvfPqModel, codes: Codes, judge: HeldOut) -> None:
        """Find out how the model is best searched."""
        self.calibrated = {}
        if judge.usable:
            with self.progress.stage("calibrate the search"):
                self.report["candidate_recall"] = judge.candidate_recall(model, codes)
                self.calibrated = calibrate_search(judge, model, codes, self.report.get("routing"))

    def _corpus(self, src: EmbeddingSource, rows: npt.NDArray[np.int64]) -> Corpus:
        x = np.empty((len(rows), src.dim), np.float32)
        with self.progress.stage("read training rows", len(rows), unit_bytes=4 * src.dim) as stage:
            for at in range(0, len(rows), _ROWS_READ):
                x[at : at + _ROWS_READ] = src.take(rows[at : at + _ROWS_READ])
                stage.advance(len(rows[at : at + _ROWS_READ]))
        return Corpus(x, src.metric)

    def _lists(self, queries: F32Rows, relevance: Relevance, part: npt.NDArray[np.int64]) -> TeacherLists:
        return TeacherLists.from_relevance(queries[part], relevance.select(part), self.config.depth)

    def _space(
        self,
        corpus: Corpus,
        queries: F32Rows,
        relevance: Relevance,
        train: npt.NDArray[np.int64],
        held: npt.NDArray[np.int64],
    ) -> Space | None:
        """Choose the coordinates of additive codes; all training happens in them."""
        stage_runs = self.config.enabled and "space" not in self.config.skip and len(held) > 0
        if self.warm is not None:
            return self.warm.model.space
        if not stage_runs or self.model.codes != "additive":
            return None
        judge = HeldOut(corpus, self._lists(queries, relevance, held), self.threads)
        with self.progress.stage("coordinates of the codes", len(SHARES) + 2, "spaces") as stage:
            space, misses = choose_space(judge, queries[train], self.model.m, self.model.seed, stage.advance)
        self.report["space"] = misses
        return space

    def _coarse(self, corpus: Corpus, terms: RowTerms | None, judge: HeldOut) -> Coarse:
        """Cluster the rows; with queries, also by the queries, and let the held-out ones choose."""
        nlist, seed = self.model.nlist, self.model.seed
        if self.given is not None:
            return Coarse(self.given.coarse, nearest(corpus.x, self.given.coarse))
        known = None if self.warm is None else self.warm.lists(nlist)
        start = None if known is None else known.coarse
        with self.progress.stage("coarse k-means", len(corpus.x)) as stage:
            plain = train_coarse(corpus.x, nlist, seed, start)
            stage.advance(len(corpus.x))
        if terms is None or "lists" in self.config.skip:
            return plain
        with self.progress.stage("lists for the queries", len(corpus.x)) as stage:
            coarse, before, after = choose_lists(plain, terms, judge, seed, start)
            stage.advance(len(corpus.x))
        self._note("lists", before, after)
        return coarse

    def _start(self, lesson: Lesson) -> tuple[IvfPqModel, Codes]:
        """Train the undistilled candidates and let the held-out queries choose; also return the codes of the rows."""
        corpus, judge = lesson.corpus, lesson.judge
        if self.given is not None:
            codes = lesson.encode(self.given)
            recall = float(judge.code_recalls(self.given, codes).mean()) if judge.usable else None
            self.report["start"] = {"given": True, "recall": recall, "residual": self.given.residual}
            return self.given, codes
        train = train_additive_start if self.model.codes == "additive" else train_start
        tried: dict[str, float | None] = {}
        best: tuple[float, IvfPqModel, Codes] | None = None
        for residual in self._bases(corpus.metric, judge.usable):
            name = f"{self.model.codes}, {'residual' if residual else 'plain'}"
            with self.progress.stage(f"codebooks ({name})", len(corpus.x)) as stage:
                model = train(
                    corpus.x,
                    lesson.coarse,
                    self.model,
                    corpus.metric,
                    residual=residual,
                    most_rows=self.config.codebook_rows,
                )
                codes = lesson.encode(model)
                tried[name] = float(judge.code_recalls(model, codes).mean()) if judge.usable else None
                stage.advance(len(corpus.x))
            value = tried[name] or 0.0
            if best is None or value > best[0]:
                best = value, model, codes
        assert best is not None
        self.report["start"] = {"recall": tried, "residual": best[1].residual}
        return best[1:]

    def _go_on(
        self, lesson: Lesson, warm: WarmStart, terms: QueryTerms | None, rows: npt.NDArray[np.int64]
    ) -> tuple[IvfPqModel, Codes]:
        """Fit the codebooks of the old model to the present rows; whom they serve was decided when it was trained."""
        x, most = lesson.corpus.x, min(ROWS, self.config.codebook_rows or ROWS)
        with self.progress.stage("codebooks of the old model", len(x)) as stage:
            model = warm.start(lesson.coarse, corpus_mean(x))
            served = terms if warm.serves_queries else None
            own = None if served is None else served.take(rows)
            model, refitted = refit_rows(model, x, lesson.coarse, own, self.model.seed, most, ROUNDS)
            codes = lesson.encode(model, own)
            stage.advance(len(x))
        self.report["start"] = {"warm": True, "residual": model.residual, "refitted": refitted}
        return replace(model, terms=served), codes

    def _bases(self, metric: Metric, judged: bool) -> tuple[bool, ...]:
        if metric is Metric.L2:
            return (False,)
        if self.model.residual is not None:
            return (self.model.residual,)
        return (False, True) if judged and self.model.codes == "pq" else (True,)

    def _distil(
        self, model: IvfPqModel, codes: Codes, lesson: Lesson, rng: np.random.Generator
    ) -> tuple[IvfPqModel, Codes]:
        """Learn what gradients reach: tables of additive codes, rotation and codewords of product codes."""
        if self.warm is not None:
            model = self.warm.tables(model)
        learned = Descent(self.config, lesson, self.progress).run(model, codes, rng)
        self.report |= {
            "loss": self.config.loss,
            "sampler": self.config.sampler,
            "temperature": learned.temperature,
        }
        model = learned.best if self._note(learned.stage, learned.before, learned.after) else learned.start
        return model, codes if model.additive else lesson.encode(model)

    def _serve_queries(
        self, start: IvfPqModel, codes: Codes, terms: QueryTerms, rows: npt.NDArray[np.int64], lesson: Lesson
    ) -> tuple[IvfPqModel, Codes]:
        """Fit codes and codewords to the errors that each row's own queries see."""
        own = terms.take(rows)
        with self.progress.stage("additive codes for the queries", len(rows)) as stage:
            most = self.config.codebook_rows
            model = serve_rows(start, lesson.corpus.x, lesson.coarse, own, self.model.seed, most)
            served = lesson.encode(model, own)
            before, after = lesson.judge.code_recalls(start, codes), lesson.judge.code_recalls(model, served)
            stage.advance(len(rows))
        kept = self._note("codes for queries", before, after)
        return (replace(model, terms=terms), served) if kept else (start, codes)

    def _route(self, model: IvfPqModel, lesson: Lesson, rng: np.random.Generator) -> IvfPqModel:
        """Teach the router where the documents of queries are."""
        with self.progress.stage("distil router", self.config.router_steps, "steps") as stage:
            known = None if self.warm is None else self.warm.lists(model.nlist)
            start = model.router if known is None else known.router
            learned = learn_router(
                start, lesson.train, lesson.coarse.lists, lesson.judge, self.config, rng, stage.advance
            )
            ladder = calibrate_lift(learned.router, learned.temperature, lesson.coarse.lists, lesson.judge)
        self._note("router", learned.before, learned.after)
        self.report["routing"] = {"temperature": learned.temperature, "ladder": ladder}
        return replace(model, router=learned.router)

    def _verify(
        self, model: IvfPqModel, codes: Codes, lesson: Lesson, judged: tuple[JudgedQueries, JudgedQueries]
    ) -> IvfPqModel:
        """Teach verification to rank what the codes find: local discrimination, as in BiDR's dense stage."""
        train, held = judged
        config, corpus = self.config, lesson.corpus
        if not (len(train.queries) and len(held.queries)):
            return model
        with self.progress.stage("adapter of verification"):
            search = lesson.judge.searching(model, codes)
            found, pool = search(train.queries), train.docs[train.docs >= 0]
            hard = np.where(np.isin(found, pool), found, -1).astype(np.int32)
            sampler = HardSampler(train, hard, config.adapter_negatives, len(corpus.x))
            candidates = search(held.queries)
            learned = learn_adapter(
                train,
                corpus,
                lambda _: sampler,
                lambda adapter: candidate_quality(held, corpus, candidates, adapter),
                hard_temperature(train.queries, corpus, hard, config.adapter_list_length),
                config,
            )
        self.report.setdefault("stages", []).append(learned.report("verification adapter", held.measure))
        return replace(model, verify_adapter=learned.adapter)

    def _note(self, stage: str, before: F64, after: F64) -> bool:
        """Report what a stage brought the held-out queries, and say whether that is enough to keep it."""
        kept = surely_better(before, after)
        self.report.setdefault("stages", []).append(
            {"stage": stage, "before": float(before.mean()), "after": float(after.mean()), "kept": kept}
        )
        return kept


def _learned(
    model: IvfPqModel, queries: F32Rows, relevance: Relevance, train: npt.NDArray[np.int64]
) -> LearnQueries | None:
    """The queries that codes or lists serve, for rows to come; of very many, some evenly spaced."""
    codes = model.terms is not None
    if (not codes and model.list_terms is None) or model.metric is Metric.L2:  # whose scores are no inner products
        return None
    train = train[:: -(-len(train) // MOST_LEARNED)]
    if np.abs(queries[train]).max() > np.finfo(np.float16).max:
        return None
    kept = relevance.select(train)
    return LearnQueries.ranking(queries[train], kept.offsets, kept.scores, codes)
