"""Learn queries that an index has never seen: what a bench may tune on."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from vqdistill.compiler.memory import LARGEST
from vqdistill.data.sources import EmbeddingSource

I64 = npt.NDArray[np.int64]


def unseen_learn_queries(learn: EmbeddingSource, manifest: Any) -> I64:
    """Return the learn queries that compile did not train on: those it reserved, held out, or left over.

    On the queries it was trained on an index finds 3 % more, and settings tuned there miss the target elsewhere. The
    draws repeat those of `compiler.supervision` and `distill.trainer`.
    """
    seed, report = manifest.plan["model"]["seed"], manifest.report
    order, kept = np.random.default_rng([seed, 2]).permutation(learn.n), report["reserved_queries"]
    reserved, drawn, others = np.split(order, [kept, min(learn.n, kept + LARGEST.queries)])
    if report["train_queries"] + report["held_out_queries"] != len(drawn):
        raise SystemExit(f"the index must be compiled from all learn queries of the dataset, got {report}")
    split = np.random.default_rng([seed, 0]).permutation(len(drawn))
    held_out = np.sort(drawn)[split[: report["held_out_queries"]]]
    return np.sort(np.concatenate([reserved, others, held_out]))
