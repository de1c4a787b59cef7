"""A start that is given: an undistilled model of product codes, in place of one trained here."""

from __future__ import annotations

import hashlib

from vqdistill.config import IvfPqConfig
from vqdistill.data.sources import EmbeddingSource
from vqdistill.errors import InvalidInput
from vqdistill.model.ivfpq import IvfPqModel


def shape_of(start: IvfPqModel) -> IvfPqConfig:
    """What a plan needs to know of a start."""
    return IvfPqConfig(nlist=start.nlist, m=start.m, codes=_codes(start), residual=start.residual)


def require_match(start: IvfPqModel, src: EmbeddingSource) -> None:
    """Require a start for such rows, with codes as a compile makes them.

    Raises
    ------
    InvalidInput
        If it is none.
    """
    got = (_codes(start), start.metric.value, start.d, start.dsub)
    wanted = ("pq", src.metric.value, src.dim, -(-src.dim // start.m))
    if got != wanted:
        raise InvalidInput(
            "start must have product codes, and the metric, dimensions and dimensions a code of the input,"
            f" {wanted}, got {got}"
        )


def digest_of(start: IvfPqModel) -> str:
    """Hex digest that tells a start from others."""
    digest = hashlib.blake2b(digest_size=16)
    for array in (start.mean, start.coarse, start.rotation, start.codewords):
        digest.update(array.tobytes())
    return digest.hexdigest()


def _codes(start: IvfPqModel) -> str:
    return "additive" if start.additive else "pq"
