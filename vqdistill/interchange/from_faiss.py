"""A faiss index as the undistilled start of a compile: its lists, rotation and codebooks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from vqdistill.config import KSUB
from vqdistill.errors import InvalidInput
from vqdistill.interchange.faiss_files import read_faiss
from vqdistill.interchange.rows import keeps_distances
from vqdistill.model.ivfpq import IvfPqModel
from vqdistill.types import F32Rows, Metric

_OUTER = (faiss.IndexIDMap, faiss.IndexIDMap2, faiss.IndexRefine, faiss.IndexRefineFlat)
"""What may be around an IVF-PQ index, and says nothing of its codes."""


def model_from_faiss(path: str | Path, metric: str | Metric) -> IvfPqModel:
    """Read the learned parts of an IVF-PQ index of 4 bits, fast-scan or not, alone or behind a rotation such as OPQ's.

    Its rows and codes are not read: a compile of the embeddings makes them anew. Transforms, identity maps and
    refinement may be around it.

    Parameters
    ----------
    path : file of `faiss.write_index`
    metric : of the embeddings, which decides how a model scores; that of the index may be another one, since under
        cosine distances and products rank alike

    Raises
    ------
    InvalidInput
        If the file holds no such index, or one that codes other rows than the embeddings: fewer dimensions, or moved.
    """
    whole = read_faiss(Path(path))  # which owns all that is in it
    index, rotations = _unwrapped(whole, Path(path))
    ivf = _ivf_pq(index, Path(path))
    d_out = int(ivf.d)
    rotation = _rotation(rotations, d_out, Path(path))
    words = faiss.vector_to_array(ivf.pq.centroids).reshape(ivf.pq.M, KSUB, ivf.pq.dsub).astype(np.float32)
    lists = ivf.quantizer.reconstruct_n(0, ivf.nlist) if ivf.nlist else np.empty((0, d_out), np.float32)
    coarse = np.ascontiguousarray(lists @ rotation, np.float32)
    if not (np.isfinite(words).all() and np.isfinite(coarse).all()):
        raise InvalidInput(f"{path} must have finite centroids and codewords, got others")
    return IvfPqModel(
        metric=Metric(metric),
        residual=bool(ivf.by_residual),
        mean=np.zeros(rotation.shape[1], np.float32),
        coarse=coarse,
        router=coarse,
        rotation=rotation,
        codewords=words,
        doc_codewords=words,
    )


def _unwrapped(index: Any, path: Path) -> tuple[Any, list[npt.NDArray[np.float64]]]:
    """The innermost index, and the matrices of the transforms around it, the outermost first."""
    matrices = []
    index = faiss.downcast_index(index)
    while isinstance(index, (*_OUTER, faiss.IndexPreTransform)):
        if isinstance(index, faiss.IndexPreTransform):
            for at in range(index.chain.size()):
                matrices += _matrix(faiss.downcast_VectorTransform(index.chain.at(at)), path)
            index = faiss.downcast_index(index.index)
        else:
            inner = index.base_index if isinstance(index, faiss.IndexRefine) else index.index
            index = faiss.downcast_index(inner)
    return index, matrices


def _matrix(transform: Any, path: Path) -> list[npt.NDArray[np.float64]]:
    if isinstance(transform, faiss.NormalizationTransform):
        return []
    if not isinstance(transform, faiss.LinearTransform):
        raise InvalidInput(f"{path} must have rotations only before its codes, got {type(transform).__name__}")
    if transform.have_bias and np.any(faiss.vector_to_array(transform.b)):
        raise InvalidInput(f"{path} must turn rows only before it codes them, got a transform that moves them")
    matrix = faiss.vector_to_array(transform.A).reshape(transform.d_out, transform.d_in)
    return [matrix.astype(np.float64)]


def _ivf_pq(index: Any, path: Path) -> Any:
    if not isinstance(index, (faiss.IndexIVFPQ, faiss.IndexIVFPQFastScan)):
        raise InvalidInput(f"{path} must hold an IVF-PQ index, got {type(index).__name__}")
    if index.pq.nbits != 4:
        raise InvalidInput(f"{path} must have codes of 4 bits, as this index has, got {index.pq.nbits}")
    if not index.is_trained:
        raise InvalidInput(f"{path} must be trained, got an index that is not")
    got, wanted = (index.quantizer.d, index.quantizer.ntotal, index.pq.d), (index.d, index.nlist, index.d)
    if got != wanted:
        raise InvalidInput(f"{path} must agree in dimensions and lists, {wanted}, got {got}")
    return index


def _rotation(matrices: list[npt.NDArray[np.float64]], d_out: int, path: Path) -> F32Rows:
    """The product of the transforms, (d_out, d)."""
    rotation = np.eye(d_out)
    for matrix in reversed(matrices):
        rotation = rotation @ matrix
    if rotation.shape[1] > d_out or not keeps_distances(rotation.astype(np.float32)):
        raise InvalidInput(
            f"{path} must keep distances before it codes rows, got a transform of {rotation.shape[1]} to {d_out}"
            " dimensions that does not"
        )
    return np.ascontiguousarray(rotation, np.float32)
