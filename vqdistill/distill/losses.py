"""Losses between teacher and student lists, as pure tensor functions, and the temperature that makes them bite."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]
"""(target, logits) -> scalar. target (q, l): teacher distribution, rows sum to 1, 0 for padding; logits (q, l): student
scores over temperature, -inf for padding."""


def listnet(target: Tensor, logits: Tensor) -> Tensor:
    """Cross-entropy of the student's list distribution under the teacher's, mean over queries.

    References
    ----------
    Cao et al.: Learning to rank: from pairwise approach to listwise approach, ICML 2007 (ListNet).
    Xiao et al.: Distill-VQ, SIGIR 2022, section 3.3: the best of the similarity functions compared there.
    """
    log_student = torch.log_softmax(logits, dim=1)
    return -(target * log_student.masked_fill(target == 0, 0.0)).sum(dim=1).mean()


LOSSES: dict[str, Loss] = {"listnet": listnet}
"""Losses by the name that DistillConfig.loss takes."""


def effective_length(scores: npt.NDArray[np.float32], temperature: float) -> float:
    """Mean over lists of exp(entropy) of softmax(scores / temperature).

    Parameters
    ----------
    scores : (q, l) float32, -inf for padding
    """
    z = (scores - scores.max(axis=1, keepdims=True)).astype(np.float64) / temperature
    p = np.exp(z)
    p /= p.sum(axis=1, keepdims=True)
    log_p = np.log(p, out=np.zeros_like(p), where=p > 0)
    return float(np.exp(-(p * log_p).sum(axis=1)).mean())


def calibrate_temperature(scores: npt.NDArray[np.float32], length: float) -> float:
    """Temperature at which the teacher's lists have the wanted effective length.

    Unit-norm embeddings score in [-1, 1], where a softmax at temperature 1 is almost uniform over hundreds of
    documents and
    teaches nothing; un-normalised ones may be peaked. Calibration makes the loss independent of the encoder's scale.

    Parameters
    ----------
    scores : (q, l) float32 teacher scores, -inf for padding
    length : wanted mean effective length, in 1..l

    Returns
    -------
    float
        Temperature in units of the scores; the nearest achievable when lists are all ties or too short.
    """
    finite = np.where(np.isfinite(scores), scores, np.nan)
    spread = float(np.nanmean(np.nanmax(finite, axis=1) - np.nanmin(finite, axis=1)))
    if not spread > 0:
        return 1.0
    low, high = np.log(spread) - 12.0, np.log(spread) + 6.0
    for _ in range(40):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if effective_length(scores, float(np.exp(middle))) < length else (low, middle)
    return float(np.exp(0.5 * (low + high)))
