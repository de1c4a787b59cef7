"""compile and build: from embeddings to a published index, deterministic and within its plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import vqdistill
from vqdistill.compiler.plan import CompilePlan
from vqdistill.compiler.supervision import DenseTeacher, supervise
from vqdistill.config import DistillConfig, IvfPqConfig
from vqdistill.errors import InvalidInput
from vqdistill.index.opening import open_index
from vqdistill.index.verify import verify
from vqdistill.progress import Progress

SAMPLE = Path(__file__).parents[2] / "data" / "debian-sample.h5"
N, D = 700, 16


@pytest.fixture(scope="module")
def rows() -> Any:
    rng = np.random.default_rng(0)
    return (rng.standard_normal((8, D))[rng.integers(0, 8, N)] + 0.4 * rng.standard_normal((N, D))).astype(np.float32)


@pytest.fixture(scope="module")
def queries(rows: Any) -> Any:
    return (rows[::4] + 0.1 * np.random.default_rng(1).standard_normal((len(rows[::4]), D))).astype(np.float32)


def _files(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.mark.parametrize("codes", ["additive", "pq"])
def test_same_seed_same_bytes_for_any_threads(codes: str, rows: Any, queries: Any, tmp_path: Path) -> None:
    for name, threads in (("a", 1), ("b", 1), ("c", 2)):
        vqdistill.compile(rows, tmp_path / name, queries=queries, ram="4B/vec", codes=codes, seed=3, threads=threads)
    vqdistill.compile(rows, tmp_path / "d", queries=queries, ram="4B/vec", codes=codes, seed=4, threads=1)
    assert _files(tmp_path / "a") == _files(tmp_path / "b")
    assert _files(tmp_path / "a") == _files(tmp_path / "c")
    assert _files(tmp_path / "a")["codes-1.seg"] != _files(tmp_path / "d")["codes-1.seg"]


@pytest.mark.parametrize("codes", ["additive", "pq"])
@pytest.mark.parametrize("dense", ["f16", "f32", "bf16", "i8", "none"])
def test_written_bytes_are_the_planned_ones(codes: str, dense: str, rows: Any, queries: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.vqd"
    report = vqdistill.compile(rows, path, queries=queries, ram="3B/vec", codes=codes, dense=dense)
    assert verify(path) == []
    with open_index(path) as reader:
        planned = report["plan"]["segments"]
        assert {kind: part.bytes for kind, part in reader.manifest.segments.items()} == {
            kind: part["bytes"] for kind, part in planned.items()
        }
        assert reader.manifest.search.to_json() == report["search"]
        assert reader.manifest.m == 6


def test_every_row_stands_once_in_list_order(rows: Any, queries: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.vqd"
    # Not distilled: an index does not keep what queries did to the lists of its rows.
    vqdistill.compile(rows, path, queries=queries, metric="ip", ram="4B/vec", dense="f32", distill=False)
    with open_index(path) as reader:
        order = reader.rows_of(np.arange(N))
        assert np.array_equal(np.sort(order), np.arange(N))
        assert np.array_equal(reader.dense_rows(np.arange(N)), rows[order])
        offsets = reader._stored.arrays["list_offsets"]
        lists = np.repeat(np.arange(reader.manifest.nlist), np.diff(offsets))
        assert np.array_equal(reader.model.assign(rows[order]), lists)


def test_distillation_gains_on_real_embeddings(tmp_path: Path) -> None:
    for name, distill in (("start", False), ("distilled", True)):
        vqdistill.compile(SAMPLE, tmp_path / name, ram="8B/vec", distill=distill)
    with h5py.File(SAMPLE) as file:
        test, truth = file["test"][:], file["neighbors"][:, :10]
    recall = {}
    for name in ("start", "distilled"):
        index = vqdistill.open(tmp_path / name)
        found = index.search(test, k=50, refine=0, nprobe=index.reader.manifest.nlist).rows
        recall[name] = np.mean([len(np.intersect1d(f, t)) for f, t in zip(found, truth, strict=True)]) / 10
    assert recall["distilled"] > recall["start"] + 0.03, recall


def test_without_queries_the_report_says_pseudo(rows: Any, tmp_path: Path) -> None:
    report = vqdistill.compile(rows, tmp_path / "a", queries="none", ram="4B/vec")["report"]
    assert report["pseudo_queries"]
    assert "unproven" in report["note"]


def test_queries_of_the_file_are_found(rows: Any, queries: Any, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "set.h5", "w") as file:
        file.attrs["distance"] = "angular"
        file["train"], file["learn_queries"] = rows, queries
    report = vqdistill.compile(tmp_path / "set.h5", tmp_path / "a", ram="4B/vec")["report"]
    assert report["queries"] == "set.h5:learn_queries"
    assert not report["pseudo_queries"]
    assert report["train_queries"] + report["held_out_queries"] == len(queries)


def test_given_scores_and_labels_teach(rows: Any, queries: Any, tmp_path: Path) -> None:
    (tmp_path / "run.tsv").write_text(
        "".join(f"{q}\t{4 * q}\t1.5\n{q}\t{(4 * q + 1) % N}\t0.5\n" for q in range(len(queries)))
    )
    np.save(tmp_path / "labels.npy", np.arange(0, N, 4, dtype=np.int32))
    for teacher in (f"scores:{tmp_path / 'run.tsv'}", f"labels:{tmp_path / 'labels.npy'}"):
        src = vqdistill.open_source(rows)
        lesson = supervise(src, queries, teacher, DenseTeacher(src, tmp_path, 0, 1, Progress()))
        assert lesson.kind == teacher[:6]
        assert np.array_equal(lesson.relevance.top(1).docs, 4 * np.arange(len(queries)))
        vqdistill.compile(rows, tmp_path / teacher[:5], queries=queries, teacher=teacher, ram="4B/vec")


@pytest.mark.parametrize(("name", "value"), [("loss", "hinge"), ("sampler", "all"), ("false_negatives", 0)])
def test_unusable_training_options_are_refused_before_any_work(
    name: str, value: Any, rows: Any, queries: Any, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInput, match=f"^{name} must be .*, got {value!r}"):
        vqdistill.compile(rows, tmp_path / "a", queries=queries, **{name: value})
    assert not any(tmp_path.iterdir())


@pytest.fixture(scope="module")
def turned() -> tuple[Any, Any, Any]:
    """Rows, queries that are noisy rows seen through a rotation, and the row of each query."""
    rng = np.random.default_rng(4)
    x = rng.standard_normal((600, 24)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    rotation = np.linalg.qr(rng.standard_normal((24, 24)))[0]
    labels = rng.integers(0, 600, 1400)
    queries = x[labels] @ rotation + 0.03 * rng.standard_normal((1400, 24))
    return x, (queries / np.linalg.norm(queries, axis=1, keepdims=True)).astype(np.float32), labels


def first_right(path: Path, queries: Any, labels: Any) -> float:
    return float((vqdistill.open(path).search(queries, k=1).rows[:, 0] == labels).mean())


def test_labels_change_the_ranking_itself(turned: tuple[Any, Any, Any], tmp_path: Path) -> None:
    """Codes, lists and verification all see the adapted query, and the manifest says what it brought."""
    x, queries, labels = turned
    np.save(tmp_path / "labels.npy", labels[:1200])
    teacher = f"labels:{tmp_path / 'labels.npy'}"
    done = vqdistill.compile(x, tmp_path / "a", queries=queries[:1200], teacher=teacher, ram="8B/vec", metric="cosine")
    vqdistill.compile(x, tmp_path / "b", queries=queries[:1200], ram="8B/vec", metric="cosine")
    assert first_right(tmp_path / "a", queries[1200:], labels[1200:]) > 0.8
    assert first_right(tmp_path / "b", queries[1200:], labels[1200:]) < 0.1
    stages = {stage["stage"]: stage for stage in done["report"]["stages"]}
    assert next(iter(stages)) == "query adapter" and list(stages)[-1] == "verification adapter"
    assert stages["query adapter"]["kept"] and stages["query adapter"]["measure"] == "MRR@10"
    with open_index(tmp_path / "a") as reader:
        manifest, model = reader.manifest, reader.model
        assert manifest.adapters["query"].units == DistillConfig().adapter_units(24) == 88
        assert ("verify" in manifest.adapters) == stages["verification adapter"]["kept"]
        plan = CompilePlan.from_json(manifest.plan)
        assert plan.ram_bytes == reader.resident_bytes
        # By code, too: with exhaustive probing the best candidate is the labelled row or a neighbour of it.
        assert model.query_adapter is not None
        adapted = model.query_adapter(queries[1200:])
        near = np.argsort(-(adapted @ x.T), axis=1)[:, :10]
    found = vqdistill.open(tmp_path / "a").search(queries[1200:], k=10, refine=0).rows
    assert np.mean([len(np.intersect1d(f, t)) for f, t in zip(found, near, strict=True)]) > 6


def test_labels_that_mean_nothing_leave_no_adapter(turned: tuple[Any, Any, Any], tmp_path: Path) -> None:
    x, _, labels = turned
    rng = np.random.default_rng(6)
    queries = x[labels[:800]] + 0.1 * rng.standard_normal((800, 24)).astype(np.float32)
    np.save(tmp_path / "labels.npy", rng.permutation(labels[:800]))
    teacher = f"labels:{tmp_path / 'labels.npy'}"
    done = vqdistill.compile(x, tmp_path / "a", queries=queries, teacher=teacher, ram="8B/vec", metric="cosine")
    kept = {stage["stage"]: stage["kept"] for stage in done["report"]["stages"]}
    assert kept["query adapter"] is kept["verification adapter"] is False
    assert (done["plan"]["model"]["query_units"], done["plan"]["model"]["verify_units"]) == (0, 0)
    fresh = x[:200] + 0.1 * rng.standard_normal((200, 24)).astype(np.float32)
    assert first_right(tmp_path / "a", fresh, np.arange(200)) > 0.9


@pytest.mark.parametrize(
    ("metric", "codes", "ram"), [("l2", "pq", "8B/vec"), ("ip", "pq", "8B/vec"), ("ip", "additive", "256KiB")]
)
def test_labels_under_every_metric_and_code(
    metric: str, codes: str, ram: str, turned: tuple[Any, Any, Any], tmp_path: Path
) -> None:
    x, queries, labels = turned
    np.save(tmp_path / "labels.npy", labels[:1200])
    options = {"teacher": f"labels:{tmp_path / 'labels.npy'}", "metric": metric, "codes": codes, "ram": ram}
    vqdistill.compile(3 * x, tmp_path / "a", queries=3 * queries[:1200], **options)
    assert first_right(tmp_path / "a", 3 * queries[1200:], labels[1200:]) > 0.7
    assert verify(tmp_path / "a") == []
    with open_index(tmp_path / "a") as reader:
        assert CompilePlan.from_json(reader.manifest.plan).ram_bytes == reader.resident_bytes


def test_an_adapted_index_is_the_same_for_the_same_seed(turned: tuple[Any, Any, Any], tmp_path: Path) -> None:
    x, queries, labels = turned
    np.save(tmp_path / "labels.npy", labels[:300])
    teacher = f"labels:{tmp_path / 'labels.npy'}"
    for name, threads in (("a", 1), ("b", 2)):
        vqdistill.compile(x, tmp_path / name, queries=queries[:300], teacher=teacher, ram="4B/vec", threads=threads)
    for file in sorted((tmp_path / "a").iterdir()):
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name


@pytest.mark.parametrize("teacher", ["", "labels", "labels:", "exact:x", "oracle", "scores:/nowhere"])
def test_unusable_teachers(teacher: str, rows: Any, queries: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput):
        vqdistill.compile(rows, tmp_path / "a", queries=queries, teacher=teacher)
    assert not (tmp_path / "a").exists()


def test_the_output_needs_a_folder(rows: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="must be in a folder that exists"):
        vqdistill.compile(rows, tmp_path / "missing" / "a", ram="4B/vec")
    assert not (tmp_path / "missing").exists()


def test_labels_need_queries(rows: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "labels.npy", np.arange(5))
    with pytest.raises(InvalidInput, match="needs learn queries"):
        vqdistill.compile(rows, tmp_path / "a", queries="none", teacher=f"labels:{tmp_path / 'labels.npy'}")


def test_parts_that_do_not_belong_together(rows: Any, tmp_path: Path) -> None:
    src = vqdistill.open_source(rows)
    plan = vqdistill.plan(src.facts, "4B/vec")
    relevance = vqdistill.ExactTeacher(src).relevance(rows[:50], 20)
    model = vqdistill.Distiller(IvfPqConfig(nlist=2, m=4), vqdistill.DistillConfig(enabled=False)).fit(
        src, rows[:50], relevance
    )
    with pytest.raises(InvalidInput, match="plan, model and source must agree"):
        vqdistill.build(plan, model, src, tmp_path / "a")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("n", [1, 2, 31, 33])
def test_tiny_corpora(n: int, rows: Any, tmp_path: Path) -> None:
    vqdistill.compile(rows[:n], tmp_path / "a", ram="8B/vec")
    _, ids = vqdistill.open(tmp_path / "a").search(rows[:n], k=1)
    assert np.array_equal(ids[:, 0], np.arange(n))


def test_a_total_budget_bounds_everything_resident(rows: Any, queries: Any, tmp_path: Path) -> None:
    vqdistill.compile(rows, tmp_path / "a", queries=queries, ram="24KiB")
    with open_index(tmp_path / "a") as reader:
        assert reader.resident_bytes <= 24 << 10
