"""Bytes and work of an index, by arithmetic alone: no row is read, nothing is trained."""

from __future__ import annotations

from dataclasses import dataclass

from vqdistill.config import KSUB, IvfPqConfig
from vqdistill.evaluate.work import NS_PER_MULTIPLICATION, NS_PER_QUERY, search_ns
from vqdistill.index.spec import Layout

_FEWEST_ROUNDS = 16
"""Perturbations of a row's additive codes, m / 2 if that is more, as `model.additive` has them."""
_CACHED = 4 << 20
"""Bytes of products of codewords that searches of codes find close by."""


def codeword_dims(d: int, model: IvfPqConfig) -> int:
    """Return dsub, the dimensions of a codeword: all `d` for additive codes, else the `m`-th part, rounded up."""
    return d if model.codes == "additive" else -(-d // model.m)


def largest_m(d: int) -> int:
    """Return the most codes for a row of `d` dimensions: even, at most 256, and one dimension or more for each."""
    return max(2, min(256, d // 2 * 2))


def bytes_per_vector(m: int) -> int:
    """Return what one more row adds to memory: `m` codes of four bits."""
    return m // 2


def layout(n: int, d: int, model: IvfPqConfig, dense: str = "none", ids: str = "rows") -> Layout:
    """Return the layout of `n` rows of `d` dimensions; its segments know their bytes (string ids: without the text)."""
    return Layout(
        n=n,
        d=d,
        nlist=model.nlist,
        m=model.m,
        dsub=codeword_dims(d, model),
        dense=dense,
        ids=ids,
        codes=model.codes,
        tables=model.tables,
        query_units=model.query_units,
        verify_units=model.verify_units,
    )


def resident_bytes(n: int, d: int, model: IvfPqConfig) -> int:
    """Return what a searcher holds in memory, of which only the codes grow with `n`."""
    return layout(n, d, model).resident_bytes


def fixed_bytes(d: int, model: IvfPqConfig) -> int:
    """Return the resident bytes that do not grow with the rows."""
    return resident_bytes(0, d, model)


@dataclass(frozen=True, kw_only=True)
class Work:
    """Expected work of one query, if rows spread evenly over the lists."""

    codes: int
    """Codes scanned."""
    code_bytes: int
    """Bytes of codes scanned."""
    multiplications: int
    """Multiply-adds of adapters, routing, rotation and look-up table."""


def query_work(n: int, d: int, model: IvfPqConfig, *, nprobe: int) -> Work:
    """Return the work of one query that visits `nprobe` lists, without the verification of candidates."""
    codes = -(-n * nprobe // model.nlist)
    dsub = codeword_dims(d, model)
    rotation = 0 if model.codes == "additive" else model.m * dsub * d
    adapters = 2 * d * (model.query_units + model.verify_units)
    return Work(
        codes=codes,
        code_bytes=codes * bytes_per_vector(model.m),
        multiplications=adapters + model.nlist * d + rotation + model.m * KSUB * dsub,
    )


def encode_work(d: int, model: IvfPqConfig, *, terms: float, shared: float = 0.0) -> dict[str, float]:
    """Return what encoding one row consists of, by kind of work: counts that measured ns are multiplied with.

    Parameters
    ----------
    terms : queries that rank the row, whose scores additive codes keep
    shared : queries of a block of rows over its rows: they are multiplied with the codewords once for all of them
    """
    m = model.m
    if model.codes == "pq":
        return {"lists": model.nlist * d, "rotation": m * codeword_dims(d, model) * d, "words": KSUB * d, "row": d}
    rounds = max(_FEWEST_ROUNDS, m // 2)
    return {
        "lists": model.nlist * d + d * d,  # and the change to the coordinates of the codes
        "row": d,
        "words": (2 + shared) * KSUB * m * d,  # of the row and its own direction
        "search": rounds * m * KSUB,
        "search beyond caches": rounds * m * KSUB * max(0.0, 1 - _CACHED / (4 * (KSUB * m) ** 2)),
        "terms": terms * rounds * m * KSUB,
    }


def query_ns(n: int, d: int, model: IvfPqConfig, dense: str, *, scanned: float, lists: float, reads: float) -> float:
    """Return the work of one query of a batch, in ns as `evaluate.work` has them: what candidates are compared by.

    Parameters
    ----------
    scanned : share of the rows in the lists that it visits
    lists : lists that it visits
    reads : rows of `dense` precision that it reads from the page cache
    """
    products = NS_PER_MULTIPLICATION * query_work(n, d, model, nprobe=0).multiplications
    return NS_PER_QUERY + products + search_ns(d, model.m, dense, lists=lists, codes=scanned * n, reads=reads)
