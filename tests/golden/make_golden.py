"""Make the golden index of the current format version, its answers, and the smallest manifest.

Run `python tests/golden/make_golden.py [DIRECTORY]` only when the format changes on purpose, and say why in
the commit. The arrays come from plain arithmetic, so that they do not depend on any library's random numbers.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

from tests.index.support import smallest_manifest  # noqa: E402
from vqdistill.index.certificate import Certificate, Rung  # noqa: E402
from vqdistill.index.policy import SearchPolicy  # noqa: E402
from vqdistill.index.reader import IndexReader  # noqa: E402
from vqdistill.index.spec import VERSION  # noqa: E402
from vqdistill.index.writer import IndexWriter  # noqa: E402
from vqdistill.model.adapter import QueryAdapter  # noqa: E402
from vqdistill.model.ivfpq import IvfPqModel  # noqa: E402
from vqdistill.model.space import Space  # noqa: E402
from vqdistill.types import Codes, Metric  # noqa: E402

N, D, NLIST, M = 50, 8, 4, 4
SEARCH = SearchPolicy(
    nprobe=2,
    refine=10,
    coverage=0.9,
    rungs=((0.5, 4.0), (0.9, 1.0), (0.99, 0.125)),
    temperature=0.5,
    confidence=0.95,
    error=0.25,
)

WORK = {"lists": 2.5, "codes": 30.0, "rows": 8.25, "pages": 3.0, "cost": 1234.5}
CERTIFICATE = Certificate(
    k=5,
    queries=6,
    tuned_on=7,
    level=0.95,
    real_queries=False,
    truth="index",
    truth_recall=0.75,
    rungs=(
        Rung(target=0.5, nprobe=None, coverage=0.9, refine=10, confidence=0.95, recall=0.6, low=0.5, high=0.7, **WORK),
        Rung(target=0.9, nprobe=4, coverage=None, refine=50, confidence=None, recall=1.0, low=0.95, high=1.0, **WORK),
    ),
)
"""What it says is arbitrary: no certificate depends on what makes it."""


def numbers(*shape: int, seed: int) -> np.ndarray:
    """Return float32 in [-1, 1) that are multiples of 1/128, out of a linear congruential generator."""
    state, values = seed, []
    for _ in range(int(np.prod(shape))):
        state = (1103515245 * state + 12345) % 2**31
        values.append((state >> 16) % 256 / 128 - 1)
    return np.array(values, dtype=np.float32).reshape(shape)


def make_model() -> IvfPqModel:
    """Return a model of additive codes; what it holds is arbitrary, but exact in float16."""
    return IvfPqModel(
        metric=Metric.IP,
        residual=True,
        mean=numbers(D, seed=1) / 8,
        coarse=numbers(NLIST, D, seed=2),
        router=numbers(NLIST, D, seed=3),
        rotation=np.empty((0, D), dtype=np.float32),
        codewords=numbers(M, 16, D, seed=4),
        doc_codewords=numbers(M, 16, D, seed=7),
        space=Space.of_forward(
            np.eye(D, dtype=np.float32) + np.eye(D, k=1, dtype=np.float32).T / 4 + np.eye(D, k=1, dtype=np.float32) / 4
        ),
        query_adapter=make_adapter(6, seed=8),
        verify_adapter=make_adapter(3, seed=11),
    )


def make_adapter(units: int, seed: int) -> QueryAdapter:
    """Return a weak adapter of linear and of other units."""
    down, bias, up = numbers(units, D, seed=seed), numbers(units, seed=seed + 1), numbers(D, units, seed=seed + 2)
    return QueryAdapter(down=down, bias=bias, up=up / 4, rank=units // 3, unit=False)


def make_codes(model: IvfPqModel, x: np.ndarray) -> Codes:
    """Encode greedily: the nearest row of `coarse`, then of each codebook the codeword nearest to what is left."""
    assert model.space is not None
    docs, coarse = x @ model.space.forward, model.coarse @ model.space.forward
    lists = ((docs[:, None] - coarse) ** 2).sum(axis=2).argmin(axis=1)
    rest, codes = docs - coarse[lists], np.zeros((len(x), M), np.uint8)
    for j, words in enumerate(model.doc_codewords):
        codes[:, j] = ((rest[:, None] - words) ** 2).sum(axis=2).argmin(axis=1)
        rest = rest - words[codes[:, j]]
    return Codes(lists.astype(np.int32), codes)


def answers(model: IvfPqModel, codes: Codes, x: np.ndarray, ids: list[str]) -> dict[str, object]:
    """Return what exhaustive searches must give: the five best of every query, exactly and by code."""
    queries = numbers(6, D, seed=5)
    assert model.query_adapter is not None and model.verify_adapter is not None
    adapted = model.query_adapter(queries)
    by_code = adapted @ (model.coarse[codes.lists] + model.codewords[np.arange(M), codes.codes].sum(axis=1)).T
    return {
        "queries": queries.tolist(),
        "search": SEARCH.to_json(),
        "certificate": CERTIFICATE.to_json(),
        **five_best(model.verify_adapter(adapted) @ x.T, ids),
        "by_code": five_best(by_code, ids),
    }


def certify(reader: IndexReader) -> tuple[SearchPolicy, Certificate]:
    """Return the defaults and the certificate of an index that is about to be published."""
    return reader.manifest.search, CERTIFICATE


def five_best(scores: np.ndarray, ids: list[str]) -> dict[str, object]:
    """Return rows, ids and scores of the five largest of every row of scores (q, n)."""
    best = np.argsort(-scores, axis=1, kind="stable")[:, :5]
    return {
        "rows": best.tolist(),
        "ids": [[ids[row] for row in rows] for rows in best],
        "scores": np.take_along_axis(scores, best, axis=1).tolist(),
    }


def main(directory: Path) -> None:
    """Write everything into `directory`, replacing what is there."""
    target, model, x = directory / f"v{VERSION}", make_model(), numbers(N, D, seed=6)
    ids = [f"Straße {row}" if row % 2 else f"road/{row}" for row in range(N)]
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    codes = make_codes(model, x)
    # Multiples of 1/128 are exact in float16 and bfloat16, so the answers hold for what is stored.
    options = {"dense": "bf16", "tables": "f16", "ids": "str", "index_id": bytes(range(16))}
    with IndexWriter(target / "index", model, **options) as writer:
        writer.add(ids, codes, x)
        writer.publish({"name": "golden"}, SEARCH, {"recall": 0.5}, certify)
    text = json.dumps(answers(model, codes, x, ids), indent=1)
    (target / "answers.json").write_text(text + "\n", encoding="utf-8")
    (directory / "manifest-smallest.json").write_bytes(smallest_manifest().to_bytes())


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
