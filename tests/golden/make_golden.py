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
from vqdistill.index.spec import VERSION  # noqa: E402
from vqdistill.index.writer import IndexWriter  # noqa: E402
from vqdistill.model.ivfpq import IvfPqModel  # noqa: E402
from vqdistill.types import Codes, Metric  # noqa: E402

N, D, NLIST, M, DSUB = 50, 8, 4, 4, 2


def numbers(*shape: int, seed: int) -> np.ndarray:
    """Return float32 in [-1, 1) that are multiples of 1/128, out of a linear congruential generator."""
    state, values = seed, []
    for _ in range(int(np.prod(shape))):
        state = (1103515245 * state + 12345) % 2**31
        values.append((state >> 16) % 256 / 128 - 1)
    return np.array(values, dtype=np.float32).reshape(shape)


def make_model() -> IvfPqModel:
    """Return a model with the identity as rotation; what else it holds is arbitrary."""
    return IvfPqModel(
        metric=Metric.IP,
        residual=False,
        mean=numbers(D, seed=1) / 8,
        coarse=numbers(NLIST, D, seed=2),
        router=numbers(NLIST, D, seed=3),
        rotation=np.eye(D, dtype=np.float32),
        codewords=numbers(M, 16, DSUB, seed=4),
        doc_codewords=numbers(M, 16, DSUB, seed=7),
    )


def make_codes(model: IvfPqModel, x: np.ndarray) -> Codes:
    """Encode by the definition: the nearest row of `coarse`, then the nearest codeword of each subspace."""
    lists = ((x[:, None] - model.coarse) ** 2).sum(axis=2).argmin(axis=1)
    parts = (x - model.mean).reshape(len(x), M, 1, DSUB)
    codes = ((parts - model.doc_codewords) ** 2).sum(axis=3).argmin(axis=2)
    return Codes(lists.astype(np.int32), codes.astype(np.uint8))


def answers(x: np.ndarray, ids: list[str]) -> dict[str, object]:
    """Return the exact five best of every query, which an exhaustive search with verification must give."""
    queries = numbers(6, D, seed=5)
    scores = queries @ x.T
    best = np.argsort(-scores, axis=1, kind="stable")[:, :5]
    return {
        "queries": queries.tolist(),
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
    # Multiples of 1/128 are exact in float16, so the answers hold for the stored rows.
    with IndexWriter(target / "index", model, dense="f16", ids="str", index_id=bytes(range(16))) as writer:
        writer.add(ids, make_codes(model, x), x)
        writer.publish({"name": "golden"}, {"nprobe": 2, "refine": 10}, {"recall": 0.5})
    (target / "answers.json").write_text(json.dumps(answers(x, ids), indent=1) + "\n", encoding="utf-8")
    (directory / "manifest-smallest.json").write_bytes(smallest_manifest().to_bytes())


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
