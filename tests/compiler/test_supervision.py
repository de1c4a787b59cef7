"""Where relevance is from: exact or from an index, given, graded, mixed, or judged by a function."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vqdistill
from tests.contracts import TeacherContract
from vqdistill.compiler import index_teacher, supervision
from vqdistill.compiler.index_teacher import IndexTeacher, list_recall
from vqdistill.compiler.memory import LARGEST, Sizes
from vqdistill.compiler.supervision import DenseTeacher, Supervision, follow, supervise, teacher_kind
from vqdistill.data.relevance import Relevance
from vqdistill.data.sources import open_source
from vqdistill.data.teacher import CallableTeacher, ExactTeacher, ScoreTeacher, Teacher
from vqdistill.errors import InvalidInput
from vqdistill.progress import Progress
from vqdistill.types import Metric

N, D, Q = 1500, 16, 60
RNG = np.random.default_rng(0)
ROWS = (RNG.standard_normal((20, D))[RNG.integers(0, 20, N)] + 0.5 * RNG.standard_normal((N, D))).astype(np.float32)
QUERIES = (ROWS[::25] + 0.2 * RNG.standard_normal((Q, D))).astype(np.float32)


def ask(place: Path, teacher: Any = "exact", **options: Any) -> Supervision:
    """Supervision without an adapter in between; judgments alone teach unless `mix` says otherwise."""
    given = {"metric": "cosine", "queries": QUERIES, "mix": 1.0, "sizes": LARGEST} | options
    src = open_source(ROWS, metric=given["metric"])
    dense = DenseTeacher(src, place / "cache", 0, 1, Progress(), given["sizes"])
    lesson = supervise(src, given["queries"], teacher, dense)
    return lesson if lesson.dense else follow(lesson, dense, given["mix"], 40.0)


@pytest.fixture
def dear(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exact search of all queries is more than can be afforded; a sample of 25 says what the index finds."""
    monkeypatch.setattr(supervision, "AFFORDABLE", 1000)
    monkeypatch.setattr(supervision, "SAMPLE", 25)


class TestIndex(TeacherContract):
    @pytest.fixture(params=["ip", "cosine", "l2"])
    def teacher(self, request: Any) -> Teacher:
        return IndexTeacher(open_source(ROWS[:60, :8], metric=request.param))

    @pytest.fixture
    def queries(self) -> Any:
        return QUERIES[:9, :8]

    @pytest.fixture
    def n(self) -> int:
        return 60

    def test_a_shallower_list_is_the_head_of_a_deeper_one(self, teacher: Teacher, queries: Any, n: int) -> None:
        """Not so for few candidates of a small index; the scores of what is found are exact nevertheless."""
        assert teacher.relevance(queries, 3).n_queries == len(queries)


@pytest.mark.parametrize("metric", list(Metric))
def test_an_index_finds_most_and_scores_it_exactly(metric: Metric) -> None:
    src = open_source(ROWS, metric=metric)
    exact = ExactTeacher(src).relevance(QUERIES, 30)
    found = IndexTeacher(src).relevance(QUERIES, 30)
    assert (found.counts == 30).all()
    assert list_recall(found, exact) > 0.9
    known = {(q, d): s for q, d, s in zip(exact.query_of_entries(), exact.docs, exact.scores, strict=True)}
    shared = [
        (s, known[q, d]) for q, d, s in zip(found.query_of_entries(), found.docs, found.scores, strict=True)
        if (q, d) in known
    ]  # fmt: skip
    np.testing.assert_allclose(*zip(*shared, strict=True), rtol=1e-4, atol=1e-5)


def test_an_index_that_visits_and_verifies_everything_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_teacher, "_NPROBE_SHARE", 1.0)
    monkeypatch.setattr(index_teacher, "VERIFIED", N)
    src = open_source(ROWS)
    assert np.array_equal(IndexTeacher(src).relevance(QUERIES, 9).docs, ExactTeacher(src).relevance(QUERIES, 9).docs)


@pytest.mark.parametrize("rows_at_once", [7, 50, 10**6])
def test_an_index_searched_part_by_part_finds_what_one_finds(
    rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_teacher, "_NPROBE_SHARE", 1.0)
    sizes = Sizes(index_bytes=100 * rows_at_once, block_bytes=7 * 4 * ROWS.shape[1])
    src = open_source(ROWS)
    found, wanted = (teacher.relevance(QUERIES, 9) for teacher in (IndexTeacher(src, sizes=sizes), IndexTeacher(src)))
    assert list_recall(found, wanted) > 0.97


def test_seed_decides_and_threads_do_not() -> None:
    src = open_source(ROWS)
    one, two = (IndexTeacher(src, 3, threads).relevance(QUERIES, 20) for threads in (1, 2))
    np.testing.assert_array_equal(one.docs, two.docs)
    np.testing.assert_array_equal(one.scores, two.scores)


def test_an_index_excludes_what_a_query_was_made_from() -> None:
    src, rows = open_source(ROWS), np.arange(0, N, 50)
    found = IndexTeacher(src).relevance(ROWS[rows], 10, exclude_self=rows)
    assert not (found.docs == rows[found.query_of_entries()]).any()
    assert list_recall(found, ExactTeacher(src).relevance(ROWS[rows], 10, exclude_self=rows)) > 0.9


def test_an_index_refuses_a_depth_of_nothing() -> None:
    with pytest.raises(InvalidInput, match="depth must be at least 1, got 0"):
        IndexTeacher(open_source(ROWS)).relevance(QUERIES, 0)


def test_recall_of_lists() -> None:
    wanted = Relevance.from_padded(np.array([[1, 2], [3, 4]]))
    assert list_recall(Relevance.from_padded(np.array([[2, 9], [4, 3]])), wanted) == 0.75
    assert list_recall(Relevance.from_padded(np.array([[3, 4], [1, 2]])), wanted) == 0
    assert list_recall(wanted, Relevance.from_lists([[]], [[]])) == 1


def test_exact_while_it_is_affordable(tmp_path: Path) -> None:
    lesson = ask(tmp_path)
    assert lesson.teacher == {"kind": "exact"}
    assert (lesson.dense, lesson.pseudo, lesson.temperature) == (True, False, None)
    exact = ExactTeacher(open_source(ROWS)).relevance(QUERIES, supervision.DEPTH)
    np.testing.assert_array_equal(lesson.relevance.docs, exact.docs)


@pytest.mark.parametrize("queries", [QUERIES, "none"])
def test_an_index_teaches_beyond_and_its_recall_is_told(dear: None, tmp_path: Path, queries: Any) -> None:
    lesson = ask(tmp_path, queries=queries)
    assert lesson.teacher["kind"] == "index" and lesson.teacher["sample"] == 25
    assert 0.8 < lesson.teacher["recall"] <= 1
    again = ask(tmp_path, queries=queries)
    np.testing.assert_array_equal(lesson.relevance.docs, again.relevance.docs)
    assert again.teacher == lesson.teacher
    if lesson.pseudo:
        assert (lesson.relevance.scores < 1 - 1e-6).all(), "no query has the document that it was made from"
    else:
        exact = ExactTeacher(open_source(ROWS)).relevance(QUERIES, supervision.DEPTH)
        assert lesson.teacher["recall"] == pytest.approx(list_recall(lesson.relevance, exact), abs=0.05)


def test_lists_of_an_index_are_not_taken_for_exact_ones(dear: None, tmp_path: Path, monkeypatch: Any) -> None:
    index = ask(tmp_path)
    monkeypatch.setattr(supervision, "AFFORDABLE", 10**12)
    exact = ask(tmp_path)
    assert index.teacher["kind"] == "index" and exact.teacher == {"kind": "exact"}
    assert not np.array_equal(index.relevance.docs, exact.relevance.docs)


def test_compile_with_an_index_as_teacher(dear: None, tmp_path: Path) -> None:
    report = vqdistill.compile(ROWS, tmp_path / "a", queries=QUERIES, ram="8B/vec", threads=1)["report"]
    assert report["teacher"]["kind"] == "index"
    assert report["teacher"]["recall"] > 0.8
    assert {stage["stage"] for stage in report["stages"]} >= {"tables", "router"}


def write_scores(place: Path, scale: float = 1.0) -> str:
    """Each query's third to seventh neighbour, in reverse."""
    docs = ExactTeacher(open_source(ROWS)).relevance(QUERIES, 7).docs.reshape(Q, 7)[:, 2:]
    lines = [f"{q}\t{doc}\t{scale * rank}" for q in range(Q) for rank, doc in enumerate(docs[q])]
    (place / "run.tsv").write_text("\n".join(lines))
    return f"scores:{place / 'run.tsv'}"


def test_scores_alone(tmp_path: Path) -> None:
    lesson = ask(tmp_path, write_scores(tmp_path))
    assert (lesson.teacher, lesson.dense, lesson.temperature) == ({"kind": "scores"}, False, None)
    assert (lesson.relevance.counts == 5).all()


@pytest.mark.parametrize("scale", [1, 1000])
def test_scores_mixed_with_dense_ones(tmp_path: Path, scale: float) -> None:
    """The seventh neighbour, which the scores put first, has its dense score and more; the scale does not matter."""
    lesson = ask(tmp_path, write_scores(tmp_path, scale), mix=0.5)
    assert lesson.teacher == {"kind": "scores", "mix": 0.5, "dense": {"kind": "exact"}}
    assert lesson.dense
    exact = ExactTeacher(open_source(ROWS)).relevance(QUERIES, supervision.DEPTH)
    assert (lesson.relevance.counts == supervision.DEPTH).all()
    assert np.array_equal(lesson.relevance.top(1).docs, exact.docs.reshape(Q, -1)[:, 6])
    first, plain = (r.padded(supervision.DEPTH)[0][:, 8:] for r in (lesson.relevance, exact))
    np.testing.assert_array_equal(first, plain)


def test_grades_become_gains(tmp_path: Path) -> None:
    (tmp_path / "qrels.txt").write_text("\n".join(f"{q} 0 {q + 10 * g} {g}" for q in range(Q) for g in (0, 1, 2, 3)))
    lesson = ask(tmp_path, f"labels:{tmp_path / 'qrels.txt'}")
    assert (lesson.teacher, lesson.dense, lesson.temperature) == ({"kind": "labels"}, False, 1.0)
    gains = np.exp(lesson.relevance.scores - 1).reshape(Q, 3)
    np.testing.assert_allclose(gains, np.broadcast_to([7, 3, 1], (Q, 3)), rtol=1e-5)
    both = ask(tmp_path, f"labels:{tmp_path / 'qrels.txt'}", mix=0.3)
    assert both.dense and both.teacher["mix"] == 0.3 and both.temperature is None


@pytest.mark.parametrize("loss", ["listnet", "wasserstein", "ranknet", "infonce"])
def test_graded_labels_train(tmp_path: Path, loss: str) -> None:
    near = ExactTeacher(open_source(ROWS)).relevance(QUERIES, 3).docs.reshape(Q, 3)
    lines = [f"{q} 0 {near[q, place]} {3 - place}" for q in range(Q) for place in range(3)]
    (tmp_path / "qrels.txt").write_text("\n".join(lines))
    teacher = f"labels:{tmp_path / 'qrels.txt'}"
    report = vqdistill.compile(
        ROWS, tmp_path / "a", queries=QUERIES, teacher=teacher, ram="8B/vec", loss=loss, mix=1, threads=1
    )["report"]
    assert report["loss"] == loss and report["teacher"]["kind"] == "labels"
    assert all(stage["after"] > stage["before"] or not stage["kept"] for stage in report["stages"])


@pytest.mark.parametrize("text", ["qid docid grade\n", "0 0 0\n1 0 -1\n"])
def test_labels_of_nothing(text: str, tmp_path: Path) -> None:
    (tmp_path / "qrels.txt").write_text(text)
    with pytest.raises(InvalidInput, match=r"qrels.txt must name a relevant document of some query, got none"):
        ask(tmp_path, f"labels:{tmp_path / 'qrels.txt'}")


class TestCallable(TeacherContract):
    @pytest.fixture
    def teacher(self) -> Teacher:
        return CallableTeacher(lambda _, docs: np.cos(docs), ExactTeacher(open_source(ROWS[:60])))

    @pytest.fixture
    def queries(self) -> Any:
        return QUERIES[:9]

    @pytest.fixture
    def n(self) -> int:
        return 60

    def test_a_shallower_list_is_the_head_of_a_deeper_one(self, teacher: Teacher, queries: Any, n: int) -> None:
        """Of a deeper list, others may be judged better; but each score is that of its pair."""
        for depth in (3, n):
            found = teacher.relevance(queries, depth)
            np.testing.assert_allclose(found.scores, np.cos(found.docs), rtol=1e-6)


def test_a_function_is_given_row_numbers_of_the_first_documents(tmp_path: Path) -> None:
    calls: list[tuple[Any, Any]] = []

    def judge(queries: Any, docs: Any) -> Any:
        calls.append((queries.copy(), docs.copy()))
        docs[:] = 0  # theirs to change
        return [[float(q) - place for place in range(docs.shape[1])] for q in queries]

    lesson = ask(tmp_path, judge)
    assert (lesson.teacher, lesson.dense) == ({"kind": "callable"}, False)
    exact = ExactTeacher(open_source(ROWS)).relevance(QUERIES, supervision.DEPTH)
    assert np.array_equal(np.concatenate([q for q, _ in calls]), np.arange(Q))
    assert np.array_equal(np.concatenate([d for _, d in calls]).ravel(), exact.docs)
    np.testing.assert_array_equal(lesson.relevance.docs, exact.docs)
    np.testing.assert_array_equal(lesson.relevance.top(1).scores, np.arange(Q))


def test_a_function_sees_the_numbers_of_the_queries_that_were_picked(tmp_path: Path) -> None:
    seen: list[Any] = []
    lesson = ask(tmp_path, lambda q, d: seen.append(q) or np.zeros(d.shape), sizes=Sizes(queries=20))
    numbers = np.concatenate(seen)
    assert len(numbers) == 20 and numbers.max() >= 20
    src = open_source(ROWS)
    np.testing.assert_allclose(lesson.queries, open_source(QUERIES, metric=src.metric).take(numbers))


def test_a_function_trains_and_can_be_mixed(tmp_path: Path) -> None:
    def judge(queries: Any, docs: Any) -> Any:
        return np.einsum("qd,qld->ql", QUERIES[queries], ROWS[docs])

    for name, mix in (("a", 1.0), ("b", 0.5)):
        report = vqdistill.compile(
            ROWS, tmp_path / name, queries=QUERIES, teacher=judge, mix=mix, ram="8B/vec", threads=1
        )["report"]
        assert report["teacher"]["kind"] == "callable" and report["teacher"].get("mix", 1) == mix


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        (lambda q, d: np.zeros(len(q)), r"must return \(60, 200\) finite scores, got \(60,\)"),
        (lambda q, d: np.zeros(d.T.shape), r"must return \(60, 200\) finite scores, got \(200, 60\)"),
        (lambda q, d: None, r"must return \(60, 200\) finite scores, got NoneType"),
        (lambda q, d: [["a"] * 200] * 60, r"must return \(60, 200\) finite scores, got list"),
        (lambda q, d: np.where(q[:, None] == 7, np.nan, 0 * d), "got nan for query 7, document"),
    ],
)
def test_functions_that_return_no_scores(judge: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=message):
        ask(tmp_path, judge)


def test_what_a_function_raises_is_its_own(tmp_path: Path) -> None:
    def judge(queries: Any, docs: Any) -> Any:
        raise RuntimeError("the model is gone")

    with pytest.raises(RuntimeError, match="the model is gone"):
        ask(tmp_path, judge)


def test_lists_of_different_lengths_are_judged_as_far_as_the_shortest() -> None:
    lists = Relevance.from_lists([[3, 1, 2], [5, 4]], [[3.0, 2.0, 1.0], [2.0, 1.0]])
    found = CallableTeacher(lambda q, d: d.astype(np.float64), ScoreTeacher(lists)).relevance(np.arange(2), 3)
    assert found.docs.tolist() == [3, 1, 5, 4] and found.counts.tolist() == [2, 2]


def test_dense_scores_alone_teach_beside_judgments(tmp_path: Path) -> None:
    lesson = ask(tmp_path, write_scores(tmp_path), mix=0)
    assert lesson.teacher == {"kind": "scores", "mix": 0, "dense": {"kind": "exact"}} and lesson.dense
    np.testing.assert_array_equal(lesson.relevance.docs, ask(tmp_path).relevance.docs)


@pytest.mark.parametrize("mix", [-0.5, 1.5, float("nan"), "half", True])
def test_no_share(mix: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"mix must be in 0\.\.1, got"):
        vqdistill.compile(ROWS, tmp_path / "a", queries=QUERIES, teacher=write_scores(tmp_path), mix=mix)


def test_nothing_to_mix_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        (tmp_path / name).touch()
    with pytest.raises(InvalidInput, match=r"mix 0.5 needs a teacher besides the dense one"):
        vqdistill.compile(ROWS, tmp_path / "out", queries=QUERIES, mix=0.5)
    assert [teacher_kind(t) for t in ("exact", "scores:a", "labels:b", lambda q, d: d)] == [
        "exact",
        "scores",
        "labels",
        "callable",
    ]


def test_a_function_needs_learn_queries(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="teacher function needs learn queries, got none"):
        ask(tmp_path, lambda q, d: d, queries="none")
