"""Learn queries that an index has never seen: what a bench may tune on."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from vqdistill.compiler.memory import LARGEST
from vqdistill.data.sources import EmbeddingSource

I64 = npt.NDArray[np.int64]


def unseen_learn_queries(learn: EmbeddingSource, manifest: Any) -> I64:
    """Return the learn queries that compile did not train on: those beyond its most, and those it held out.

    On the queries it was trained on an index finds 3 % more, and settings tuned there miss the target elsewhere. The
    draws repeat those of `compiler.supervision` and `distill.trainer`.
    """
    seed, report = manifest.plan["model"]["seed"], manifest.report
    order = np.random.default_rng([seed, 2]).permutation(learn.n)
    drawn = np.sort(order[: LARGEST.queries])
    if report["train_queries"] + report["held_out_queries"] != len(drawn):
        raise SystemExit(f"the index must be compiled from all learn queries of the dataset, got {report}")
    split = np.random.default_rng([seed, 0]).permutation(len(drawn))
    return np.sort(np.concatenate([order[LARGEST.queries :], drawn[split[: report["held_out_queries"]]]]))
