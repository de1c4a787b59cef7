"""IvfPqModel: the learned arrays of an index, with encoding and decoding of rows; product or additive codes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from vqdistill.config import KSUB
from vqdistill.errors import InvalidInput
from vqdistill.kernels import additive, jit
from vqdistill.kernels.threads import matmul_t, one_library_thread
from vqdistill.model import lists as query_lists
from vqdistill.model.adapter import QueryAdapter
from vqdistill.model.additive import RowTerms, TermsOfRows, encode_additive, own_directions, row_metric
from vqdistill.model.kmeans import nearest
from vqdistill.model.learned import LearnQueries, TermFinder
from vqdistill.model.space import Space
from vqdistill.types import Codes, F32Rows, Metric

_BLOCK_BYTES = 32 << 20
"""Float32 bytes of the rows that are quantized at once: many, as products of queries are shared among them."""
_NEW_BYTES = 128 << 20
"""The same of rows that are added: more, as the rows of a list share the queries that are tried for them."""


@dataclass(frozen=True, eq=False)
class _Docs:
    """Rows on their way to lists and codes."""

    rows: F32Rows
    """(b, d) in the coordinates of the codes"""
    mean: F32Rows
    """(d,) of the corpus, in these too"""

    @cached_property
    def own(self) -> F32Rows:
        """(b, d) their `own_directions`."""
        return own_directions(self.rows, self.mean)


@dataclass(frozen=True, kw_only=True)
class IvfPqModel:
    """Inverted lists and 4-bit codes of prepared rows (unit rows under cosine).

    Product codes stand for `rotation @ (x - base)`, one codeword of dsub dimensions a subspace; additive codes for
    `x - base` itself, as a sum of m codewords of all d dimensions. base is `coarse[list]` (residual) or `mean` (plain).
    Additive codes and lists are found in the coordinates of `space`; all arrays but those for encoding are in the rows'
    own.
    With the query q, the score of list l and codes c is, larger being better,

    * ip, cosine: <q, coarse[l]> or <q, mean>, plus sum_j <q_j, codewords[j, c_j]>
    * l2 (plain product codes only), p = q - mean: -|p|^2 + sum_j (2 <p_j, codewords[j, c_j]> - |codewords[j, c_j]|^2)

    where q_j is the j-th subspace of rotation @ q for product codes, and q for additive ones. q is the query behind
    `query_adapter`, where there is one; dense rows are scored with what `verify_adapter` makes of q.

    Lists are visited in the order of <q, router[l]> (l2: less |router[l]|^2 / 2). `doc_codewords` and `space` serve
    encoding only and stay on disk; `router` and `codewords` serve queries only, and are what distillation moves last.
    All arrays are float32 and C-contiguous.

    References
    ----------
    Jegou, Douze, Schmid: Product quantization for nearest neighbor search, TPAMI 2011, section IV (IVFADC).
    Babenko, Lempitsky: Additive quantization for extreme vector compression, CVPR 2014.
    Xiao et al.: Distill-VQ, SIGIR 2022, section 3.1.
    """

    metric: Metric
    residual: bool
    mean: F32Rows
    """(d,)"""
    coarse: F32Rows
    """(nlist, d)"""
    router: F32Rows
    """(nlist, d)"""
    rotation: F32Rows
    """Product codes: (d_out, d), d_out = m * dsub >= d, orthonormal columns in a start, bent to the queries by
    distillation. Additive codes: (0, d)."""
    codewords: F32Rows
    """(m, ksub, dsub); dsub = d for additive codes"""
    doc_codewords: F32Rows
    """(m, ksub, dsub) that rows are encoded with, in the coordinates of `space`"""
    space: Space | None = None
    """Coordinates that rows are encoded in; None = their own, as for product codes."""
    query_adapter: QueryAdapter | None = None
    """What queries go through before any stage."""
    verify_adapter: QueryAdapter | None = None
    """What they go through on top of it before dense rows are scored."""
    terms: TermsOfRows | None = field(default=None, compare=False, repr=False)
    """What `build` encodes the rows of the training corpus with, by row number; no part of an index."""
    anchors: F32Rows | None = field(default=None, compare=False, repr=False)
    """(nlist, d) that row signatures (`lists.signatures`) go to the nearest of, where queries shaped the lists, in the
    coordinates of `space`; None = rows go to the nearest `coarse`."""
    list_terms: TermsOfRows | None = field(default=None, compare=False, repr=False)
    """What `build` assigns the rows of the training corpus with, by row number; no part of an index."""
    learned: LearnQueries | None = field(default=None, compare=False, repr=False)
    """Queries that `terms` and `list_terms` come from, for rows that are added later; None = nothing to serve them."""

    def __post_init__(self) -> None:
        arrays = (self.mean, self.coarse, self.router, self.rotation, self.codewords, self.doc_codewords)
        ok = tuple(array.ndim for array in arrays) == (1, 2, 2, 2, 3, 3) and self.codewords.shape[1] == KSUB
        ok = ok and self.codewords.shape == self.doc_codewords.shape and self.coarse.shape == self.router.shape
        ok = ok and self.coarse.shape[1] == self.rotation.shape[1] == self.d
        ok = ok and (self.anchors is None or self.anchors.shape == self.coarse.shape)
        ok = ok and (self.space is None or self.space.forward.shape == self.space.inverse.shape == (self.d, self.d))
        ok = ok and (self.learned is None or self.learned.queries.shape[1] == self.d)
        ok = ok and all(adapter is None or adapter.d == self.d for adapter in (self.query_adapter, self.verify_adapter))
        if not ok or len(self.rotation) != (0 if self.additive and self.dsub == self.d else self.m * self.dsub):
            shapes = {name: value.shape for name, value in vars(self).items() if isinstance(value, np.ndarray)}
            raise InvalidInput(f"model arrays must agree in nlist, d, m and dsub with ksub {KSUB}, got {shapes}")
        if self.space is not None and not self.additive:
            raise InvalidInput("space must be None for product codes: their rotation turns queries and rows alike")
        if self.metric is Metric.L2 and (self.residual or self.additive):
            raise InvalidInput(
                "metric l2 needs plain product codes: with others its score is no sum over list and codes"
            )

    @property
    def additive(self) -> bool:
        """Whether codewords are full-dimensional and add up."""
        return len(self.rotation) == 0

    @property
    def nlist(self) -> int:
        """Lists."""
        return int(self.coarse.shape[0])

    @property
    def d(self) -> int:
        """Dimensions of a row."""
        return int(self.mean.shape[0])

    @property
    def m(self) -> int:
        """Subspaces."""
        return int(self.codewords.shape[0])

    @property
    def dsub(self) -> int:
        """Dimensions of a codeword."""
        return int(self.codewords.shape[2])

    @property
    def doc_space(self) -> F32Rows:
        """What an index keeps of `space`: (d, d), the identity where rows are encoded in their own coordinates."""
        return np.eye(self.d, dtype=np.float32) if self.space is None else self.space.forward

    @one_library_thread()
    def assign(self, x: F32Rows, list_terms: RowTerms | None = None) -> npt.NDArray[np.int32]:
        """List of each row (b, d), ties to the lowest: nearest in squared L2, by `anchors` if there are any, else by
        `coarse`, which takes no terms. Returns (b,) int32.
        """
        return self._assign(self._as_docs(x), list_terms)

    @one_library_thread()
    def quantize(
        self, x: F32Rows, lists: npt.NDArray[np.int32], terms: RowTerms | None = None
    ) -> npt.NDArray[np.uint8]:
        """Code each row (b, d) given its list (b,) int32. Returns (b, m) uint8."""
        return self._quantize(self._as_docs(x), lists, terms)

    def encode(self, x: F32Rows, terms: RowTerms | None = None, list_terms: RowTerms | None = None) -> Codes:
        """Assign each row to its list and quantize it.

        Parameters
        ----------
        x : (b, d) float32, C-contiguous, prepared (unit rows under cosine)
        terms : queries that rank the rows, whose errors additive codes keep small; product codes ignore them
        list_terms : queries that rank the rows, which draw them to a list where `anchors` say so

        Returns
        -------
        Codes
            `lists` (b,) int32 in [0, nlist); `codes` (b, m) uint8 in [0, ksub). Ties go to the lowest index.

        Raises
        ------
        InvalidInput
            If `x` has another shape or dtype.
        """
        self._require_rows(x)
        with one_library_thread():
            return self._encode(self._as_docs(x), terms, list_terms)

    def encode_new(self, x: F32Rows) -> Codes:
        """Encode rows that are not of the training corpus as if they were: the learn queries that would have ranked
        them shape their lists and codes. Parameters, results and errors as `encode`.
        """
        self._require_rows(x)
        serves = self.learned is not None and self.learned.codes
        out = Codes(np.empty(len(x), np.int32), np.empty((len(x), self.m), np.uint8))
        with one_library_thread():
            for part in self._blocks(len(x), _NEW_BYTES):
                docs = self._as_docs(x[part])
                terms = self._later_terms(x[part], docs)
                codes = self._encode(docs, terms if serves else None, terms)
                out.lists[part], out.codes[part] = codes.lists, codes.codes
        return out

    def later_terms(self, x: F32Rows) -> RowTerms | None:
        """Learn queries that would have ranked rows (b, d) float32, prepared; None if the model knows none."""
        with one_library_thread():
            return self._later_terms(x, self._as_docs(x))

    def _require_rows(self, x: F32Rows) -> None:
        if x.ndim != 2 or x.shape[1] != self.d or x.dtype != np.float32:
            raise InvalidInput(f"x must be (b, {self.d}) float32, got {x.shape} {x.dtype}")

    def _blocks(self, n: int, nbytes: int = _BLOCK_BYTES) -> Iterator[slice]:
        rows = max(1, nbytes // (4 * self.d))
        return (slice(at, at + rows) for at in range(0, n, rows))

    def _encode(self, docs: _Docs, terms: RowTerms | None, list_terms: RowTerms | None) -> Codes:
        lists = self._assign(docs, list_terms)
        return Codes(lists, self._quantize(docs, lists, terms))

    def _later_terms(self, x: F32Rows, docs: _Docs) -> RowTerms | None:
        return None if self._finder is None else self._finder.find(x, self._assign(docs, None))

    @cached_property
    def _finder(self) -> TermFinder | None:
        return None if self.learned is None else TermFinder(self.learned, self.router, self.space)

    def decode(self, codes: Codes) -> F32Rows:
        """Approximate rows (b, d) float32 that the codes stand for."""
        if self.additive:
            sums = additive.decode(codes.codes, self.doc_codewords)
            return self._base(codes.lists) + (sums if self.space is None else self.space.queries(sums))
        words = self.doc_codewords[np.arange(self.m), codes.codes]
        back = words.reshape(len(words), -1) @ np.linalg.pinv(self.rotation).T
        return np.asarray(self._base(codes.lists) + back, dtype=np.float32)

    def in_rows_space(self, space: Space | None) -> IvfPqModel:
        """The model of rows x, if this one was trained on `space.docs(x)` and `space.queries(q)`; scores stay."""
        return self if space is None else self._moved(space.queries, space)

    def in_trained_space(self) -> IvfPqModel:
        """The model as it was trained, undoing `in_rows_space`."""
        return self if self.space is None else self._moved(self.space.docs, None)

    def _moved(self, move: Callable[[F32Rows], F32Rows], space: Space | None) -> IvfPqModel:
        return replace(
            self,
            space=space,
            mean=move(self.mean[None])[0],
            coarse=move(self.coarse),
            router=move(self.router),
            codewords=move(self.codewords.reshape(-1, self.d)).reshape(self.codewords.shape),
        )

    def _docs(self, x: F32Rows) -> F32Rows:
        return x if self.space is None else self.space.docs(x)

    def _as_docs(self, x: F32Rows) -> _Docs:
        return _Docs(self._docs(x), self._mean_doc)

    @cached_property
    def _coarse_docs(self) -> F32Rows:
        return self._docs(self.coarse)

    @cached_property
    def _mean_doc(self) -> F32Rows:
        return np.asarray(self._docs(self.mean[None])[0])

    def _assign(self, docs: _Docs, list_terms: RowTerms | None) -> npt.NDArray[np.int32]:
        if self.anchors is None:
            return nearest(docs.rows, self._coarse_docs)
        return query_lists.assign(docs.own, list_terms, self.anchors)

    def _quantize(self, docs: _Docs, lists: npt.NDArray[np.int32], terms: RowTerms | None) -> npt.NDArray[np.uint8]:
        rows = docs.rows
        out = np.empty((len(rows), self.m), np.uint8)
        for part in self._blocks(len(rows)):
            y = rows[part] - (self._coarse_docs[lists[part]] if self.residual else self._mean_doc)
            if self.additive:
                metric = row_metric(docs.own[part], None if terms is None else terms.take(part))
                out[part] = encode_additive(y, metric, self.doc_codewords)
            else:
                out[part] = jit.pq_assign(matmul_t(y, self.rotation), self.doc_codewords)
        return out

    def _base(self, lists: npt.NDArray[np.int32]) -> F32Rows:
        return self.coarse[lists] if self.residual else self.mean
