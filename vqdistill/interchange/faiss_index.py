"""An index as one of faiss: its lists, codebooks, codes and vectors as they are, nothing encoded again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from vqdistill.errors import InvalidInput
from vqdistill.index.reader import IndexReader
from vqdistill.interchange.rows import LiveRows, keeps_distances
from vqdistill.model.adapter import QueryAdapter
from vqdistill.model.ivfpq import IvfPqModel
from vqdistill.types import F32Rows, Metric

F64 = npt.NDArray[np.float64]

FAISS_K = 10
"""Results that `k_factor` is set for: the index reads the policy's candidates for searches of so many."""


@dataclass(frozen=True)
class FaissOptions:
    """What of an index goes along, and how."""

    refine: bool = True
    """Whether dense vectors go along, in float16 (bfloat16 and float32 as they are), and verify candidates."""
    fast_scan: bool = True
    """Whether codes are laid out for SIMD look-ups, in tables that faiss rounds to bytes, as ours are."""
    nbits: int = 4
    """4; or 8 for product codes of pairs of subspaces, whose 256 codewords are all pairs: the same bytes and scores."""
    numbered: bool = False
    """Whether faiss gives the place of a row in the file instead of its id, as loaders that keep ids beside it want."""
    adapters: bool = True
    """Whether adapters of queries go along; without them, queries find less than here."""


def to_faiss(reader: IndexReader, options: FaissOptions = FaissOptions()) -> faiss.Index:
    """Make a faiss index with the lists, codebooks and codes of an open one; deleted rows are left out.

    Lists are visited in the order of `router`, and residual codes are scored with `coarse`: the quantizer of the faiss
    index ranks by the former, and hands over products with the latter. Its `nprobe` is the policy's, and `k_factor`
    stands for the policy's candidates at 10 results. Scores are those of the rows' metric; queries need no scaling.

    Parameters
    ----------
    reader : stays open while this runs
    options : see there; ids that are no integers want `numbered`

    Returns
    -------
    faiss.Index
        Memory: codes and 8 bytes of each row, and its dense vector with `refine`.

    Raises
    ------
    InvalidInput
        If faiss has no words for something; the sentence says what.
    """
    _require_expressible(reader, options)
    model = reader.model
    query = model.query_adapter if options.adapters else None
    ivf, before = _empty_ivf(model, options.nbits)
    rows = LiveRows(reader)
    vectors = _dense_index(reader) if options.refine else None
    ids = np.empty(rows.n, np.int64)
    begin = 0
    for chunk in rows.chunks():
        end = begin + len(chunk.positions)
        ids[begin:end] = np.arange(begin, end) if options.numbered else reader.ids_of(chunk.positions)
        inside = ids[begin:end] if vectors is None else np.arange(begin, end)  # verified rows are named outside
        codes = chunk.pairs
        ivf.invlists.add_entries(chunk.list, end - begin, faiss.swig_ptr(inside), faiss.swig_ptr(codes))
        if vectors is not None:
            vectors.add(reader.dense_rows(chunk.positions))
        begin = end
    ivf.ntotal = rows.n
    policy = reader.manifest.search
    ivf.nprobe = policy.nprobe
    index = _chained([*_transforms(query), *before], _fast(ivf) if options.fast_scan else ivf)
    if vectors is not None:
        verify = model.verify_adapter if options.adapters else None
        index = faiss.IndexRefine(index, _chained([*_transforms(query), *_transforms(verify)], vectors))
        index.k_factor = max(1.0, policy.refine / FAISS_K)
    if vectors is not None and not options.numbered:
        index = _with_ids(index, ids)
    return _chained([faiss.NormalizationTransform(model.d, 2.0)] if model.metric is Metric.COSINE else [], index)


def _require_expressible(reader: IndexReader, options: FaissOptions) -> None:
    manifest, model = reader.manifest, reader.model
    if options.nbits not in (4, 8) or (options.nbits == 8 and (options.fast_scan or model.additive)):
        raise InvalidInput(f"nbits must be 4, or 8 for product codes without fast_scan, got {options.nbits}")
    if manifest.ids == "str" and not options.numbered:
        raise InvalidInput("ids of a faiss index are integers, got an index with strings: number its rows")
    if options.refine and manifest.dense == "none":
        raise InvalidInput("refine needs an index with dense rows, got one with dense=none")
    adapters = [model.query_adapter, *([model.verify_adapter] if options.refine else [])]
    for adapter in adapters if options.adapters else []:
        if adapter is not None and adapter.rank < adapter.units:
            raise InvalidInput(
                "faiss has linear transforms of queries only, got an adapter with"
                f" {adapter.units - adapter.rank} hidden units; without adapters the index can be written, but finds"
                " less"
            )
    if model.metric is Metric.L2 and not keeps_distances(model.rotation):
        raise InvalidInput("faiss ranks lists by distances behind the rotation, got a rotation that changes distances")


def _empty_ivf(model: IvfPqModel, nbits: int) -> tuple[Any, list[Any]]:
    """The lists and codebooks without rows, and what queries go through before them."""
    ivf, before = (_empty_additive(model), []) if model.additive else _empty_product(model, nbits)
    ivf.by_residual = model.residual
    ivf.is_trained = True
    return ivf, before


def _empty_additive(model: IvfPqModel) -> Any:
    words = model.codewords
    if not model.residual:
        words = words.copy()
        words[0] += model.mean
    ivf = faiss.IndexIVFLocalSearchQuantizer(
        _quantizer(model, model.router, model.coarse),
        model.d,
        model.nlist,
        model.m,
        4,
        faiss.METRIC_INNER_PRODUCT,
        faiss.AdditiveQuantizer.ST_LUT_nonorm,
    )
    faiss.copy_array_to_vector(words.ravel(), ivf.lsq.codebooks)
    ivf.lsq.is_trained = True
    return ivf


def _empty_product(model: IvfPqModel, nbits: int) -> tuple[Any, list[Any]]:
    """The lists and codebooks, and the turn of queries that codes are of."""
    rotation = model.rotation.astype(np.float64)
    back = np.linalg.pinv(rotation)  # (d, d_out): <rotation q, back^T x> = <q, x> for a rotation of full column rank
    l2 = model.metric is Metric.L2
    shift = model.mean.astype(np.float64) if l2 else np.zeros(model.d)
    words = model.codewords
    if not model.residual and not l2:
        words = words + (model.mean @ back).astype(np.float32).reshape(model.m, 1, model.dsub)
    if nbits == 8:
        shape = (model.m // 2, 16, 16, model.dsub)
        low, high = np.broadcast_to(words[::2, None], shape), np.broadcast_to(words[1::2, :, None], shape)
        words = np.concatenate([low, high], axis=3)
    router, coarse = (((table - shift) @ back).astype(np.float32) for table in (model.router, model.coarse))
    metric = faiss.METRIC_L2 if l2 else faiss.METRIC_INNER_PRODUCT
    quantizer = _quantizer(model, router, coarse)
    ivf = faiss.IndexIVFPQ(quantizer, len(rotation), model.nlist, len(words), nbits, metric)
    faiss.copy_array_to_vector(words.ravel(), ivf.pq.centroids)
    return ivf, [_linear(rotation, -rotation @ shift)]


def _quantizer(model: IvfPqModel, router: F32Rows, coarse: F32Rows) -> Any:
    """What visits lists in the order of `router` and, for residual codes, gives the products with `coarse`."""
    kind = faiss.IndexFlatL2 if model.metric is Metric.L2 else faiss.IndexFlatIP
    lists = kind(router.shape[1])
    lists.add(np.ascontiguousarray(router))
    if not model.residual or np.array_equal(router, coarse):
        return lists
    bases = kind(router.shape[1])
    bases.add(np.ascontiguousarray(coarse))
    both = faiss.IndexRefine(lists, bases)
    both.k_factor = 1.0
    return both


def _fast(ivf: Any) -> Any:
    """The same codes, 32 of them side by side."""
    if isinstance(ivf, faiss.IndexIVFPQ):
        fast = faiss.IndexIVFPQFastScan(ivf)
    else:
        # What is made of `ivf` cannot be written, but its lists can be had by one that can.
        made = faiss.IndexIVFAdditiveQuantizerFastScan(ivf)
        fast = faiss.IndexIVFLocalSearchQuantizerFastScan(
            ivf.quantizer, ivf.d, ivf.nlist, ivf.lsq.M, 4, ivf.metric_type, ivf.lsq.search_type
        )
        faiss.copy_array_to_vector(faiss.vector_to_array(ivf.lsq.codebooks), fast.lsq.codebooks)
        fast.lsq.is_trained = fast.is_trained = True
        fast.by_residual = ivf.by_residual
        fast.replace_invlists(made.invlists, True)
        made.own_invlists = False
        fast.ntotal = ivf.ntotal
        fast.referenced_objects = [ivf]
    fast.nprobe = ivf.nprobe
    ivf.reset()  # it goes on living for its quantizer; its codes need not
    return fast


def _transforms(adapter: QueryAdapter | None) -> list[Any]:
    """A linear adapter, and the scaling behind it under cosine."""
    if adapter is None:
        return []
    down, bias, up = (array.astype(np.float64) for array in (adapter.down, adapter.bias, adapter.up))
    linear = _linear(np.eye(adapter.d) + up @ down, up @ bias)
    return [linear, faiss.NormalizationTransform(adapter.d, 2.0)] if adapter.unit else [linear]


def _linear(matrix: F64, bias: F64) -> Any:
    """Transform of x into matrix x + bias."""
    linear = faiss.LinearTransform(matrix.shape[1], matrix.shape[0], True)
    faiss.copy_array_to_vector(np.ascontiguousarray(matrix, np.float32).ravel(), linear.A)
    faiss.copy_array_to_vector(bias.astype(np.float32), linear.b)
    linear.is_trained = True
    return linear


def _chained(transforms: Sequence[Any], index: Any) -> Any:
    """The index behind transforms of queries."""
    if not transforms:
        return index
    chain = faiss.IndexPreTransform(index)
    for transform in reversed(transforms):
        chain.prepend_transform(transform)
    return chain


def _with_ids(index: Any, ids: npt.NDArray[np.int64]) -> Any:
    """The index, with these ids instead of numbers from 0 on."""
    named = faiss.IndexIDMap2(faiss.IndexFlat(index.d, index.metric_type))  # it refuses one that has rows already
    named.index = index
    named.referenced_objects = [index]
    faiss.copy_array_to_vector(ids, named.id_map)
    named.ntotal = len(ids)
    named.construct_rev_map()
    return named


def _dense_index(reader: IndexReader) -> Any:
    """An empty index for dense rows as they are stored; rows of bytes with a scale become float16."""
    manifest = reader.manifest
    metric = faiss.METRIC_L2 if manifest.metric is Metric.L2 else faiss.METRIC_INNER_PRODUCT
    if manifest.dense == "f32":
        return faiss.IndexFlat(manifest.d, metric)
    kind = faiss.ScalarQuantizer.QT_bf16 if manifest.dense == "bf16" else faiss.ScalarQuantizer.QT_fp16
    return faiss.IndexScalarQuantizer(manifest.d, kind, metric)
