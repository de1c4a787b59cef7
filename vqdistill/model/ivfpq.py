"""IvfPqModel: the learned arrays of an index, with encoding and decoding of rows; product or additive codes."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from vqdistill.config import KSUB
from vqdistill.errors import InvalidInput
from vqdistill.kernels import additive, jit
from vqdistill.kernels.threads import matmul_t, one_library_thread
from vqdistill.model import lists as query_lists
from vqdistill.model.adapter import QueryAdapter
from vqdistill.model.additive import RowTerms, TermsOfRows, encode_additive, row_metric
from vqdistill.model.kmeans import nearest
from vqdistill.types import Codes, F32Rows, Metric

_ROWS_AT_ONCE = 8192


@dataclass(frozen=True, kw_only=True)
class IvfPqModel:
    """Inverted lists and 4-bit codes of prepared rows (unit rows under cosine).

    Product codes stand for `rotation @ (x - base)`, one codeword of dsub dimensions a subspace; additive codes for
    `x - base` itself, as a sum of m codewords of all d dimensions. base is `coarse[list]` (residual) or `mean` (plain).
    With the query q, the score of list l and codes c is, larger being better,

    * ip, cosine: <q, coarse[l]> or <q, mean>, plus sum_j <q_j, codewords[j, c_j]>
    * l2 (plain product codes only), p = q - mean: -|p|^2 + sum_j (2 <p_j, codewords[j, c_j]> - |codewords[j, c_j]|^2)

    where q_j is the j-th subspace of rotation @ q for product codes, and q for additive ones. q is the query behind
    `query_adapter`, where there is one; dense rows are scored with what `verify_adapter` makes of q.

    Lists are visited in the order of <q, router[l]> (l2: less |router[l]|^2 / 2). `doc_codewords` serves encoding
    only and
    stays on disk; `router` and `codewords` serve queries only, and are what distillation moves last. All arrays are
    float32 and C-contiguous.

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
    """(m, ksub, dsub) that rows are encoded with"""
    query_adapter: QueryAdapter | None = None
    """What queries go through before any stage."""
    verify_adapter: QueryAdapter | None = None
    """What they go through on top of it before dense rows are scored."""
    terms: TermsOfRows | None = field(default=None, compare=False, repr=False)
    """What `build` encodes the rows of the training corpus with, by row number; no part of an index."""
    anchors: F32Rows | None = field(default=None, compare=False, repr=False)
    """(nlist, d) that row signatures (`lists.signatures`) go to the nearest of, where queries shaped the lists; None =
    rows go to the nearest `coarse`. No part of an index."""
    list_terms: TermsOfRows | None = field(default=None, compare=False, repr=False)
    """What `build` assigns the rows of the training corpus with, by row number; no part of an index."""

    def __post_init__(self) -> None:
        arrays = (self.mean, self.coarse, self.router, self.rotation, self.codewords, self.doc_codewords)
        ok = tuple(array.ndim for array in arrays) == (1, 2, 2, 2, 3, 3) and self.codewords.shape[1] == KSUB
        ok = ok and self.codewords.shape == self.doc_codewords.shape and self.coarse.shape == self.router.shape
        ok = ok and self.coarse.shape[1] == self.rotation.shape[1] == self.d
        ok = ok and (self.anchors is None or self.anchors.shape == self.coarse.shape)
        ok = ok and all(adapter is None or adapter.d == self.d for adapter in (self.query_adapter, self.verify_adapter))
        if not ok or len(self.rotation) != (0 if self.additive and self.dsub == self.d else self.m * self.dsub):
            shapes = {name: value.shape for name, value in vars(self).items() if isinstance(value, np.ndarray)}
            raise InvalidInput(f"model arrays must agree in nlist, d, m and dsub with ksub {KSUB}, got {shapes}")
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

    @one_library_thread()
    def assign(self, x: F32Rows, list_terms: RowTerms | None = None) -> npt.NDArray[np.int32]:
        """List of each row (b, d), ties to the lowest: nearest in squared L2, by `anchors` if there are any, else by
        `coarse`, which takes no terms. Returns (b,) int32.
        """
        if self.anchors is None:
            return nearest(x, self.coarse)
        return query_lists.assign(x, self.mean, list_terms, self.anchors)

    @one_library_thread()
    def quantize(
        self, x: F32Rows, lists: npt.NDArray[np.int32], terms: RowTerms | None = None
    ) -> npt.NDArray[np.uint8]:
        """Code each row (b, d) given its list (b,) int32. Returns (b, m) uint8."""
        out = np.empty((x.shape[0], self.m), np.uint8)
        for at in range(0, x.shape[0], _ROWS_AT_ONCE):
            part = slice(at, at + _ROWS_AT_ONCE)
            y = np.asarray(x[part] - self._base(lists[part]), dtype=np.float32)
            if self.additive:
                metric = row_metric(x[part], self.mean, None if terms is None else terms.take(part))
                out[part] = encode_additive(y, metric, self.doc_codewords)
            else:
                out[part] = jit.pq_assign(matmul_t(y, self.rotation), self.doc_codewords)
        return out

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
        if x.ndim != 2 or x.shape[1] != self.d or x.dtype != np.float32:
            raise InvalidInput(f"x must be (b, {self.d}) float32, got {x.shape} {x.dtype}")
        lists = self.assign(x, list_terms)
        return Codes(lists, self.quantize(x, lists, terms))

    def decode(self, codes: Codes) -> F32Rows:
        """Approximate rows (b, d) float32 that the codes stand for."""
        if self.additive:
            return self._base(codes.lists) + additive.decode(codes.codes, self.doc_codewords)
        words = self.doc_codewords[np.arange(self.m), codes.codes]
        back = words.reshape(len(words), -1) @ np.linalg.pinv(self.rotation).T
        return np.asarray(self._base(codes.lists) + back, dtype=np.float32)

    def _base(self, lists: npt.NDArray[np.int32]) -> F32Rows:
        return self.coarse[lists] if self.residual else self.mean
